// Asks the dispatcher. The token stays in this tab, and travels in a header that no other site can make a browser send.

const KEY = "dispatcher-token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// `dispatcher dev` prints a URL with the token behind the #, which browsers keep to themselves.
function fromAddress() {
  const match = /^#token=(.+)$/.exec(window.location.hash);
  if (!match) return;
  sessionStorage.setItem(KEY, decodeURIComponent(match[1]));
  history.replaceState(null, "", window.location.pathname);
}

fromAddress();

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

async function ask(path, options = {}, given = token.get()) {
  const headers = { Accept: "application/json", ...options.headers };
  if (given) headers.Authorization = `Bearer ${given}`;
  const signal = AbortSignal.timeout(10_000);
  const answer = await fetch(`api/${path}`, { ...options, headers, signal, cache: "no-store", credentials: "omit" });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, said.error ?? `The dispatcher answers ${answer.status}.`);
  return said;
}

export function get(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null)).toString();
  return ask(query ? `${path}?${query}` : path);
}

export function post(path, body = {}, given = undefined) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body) }, given);
}
