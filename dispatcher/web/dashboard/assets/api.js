// Requests to the dispatcher. The token stays in this tab. It is sent in a header: no other site can make a browser send it.

const KEY = "dispatcher-token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// If the browser has no session storage, the token lasts as long as the page.
let unkept = null;

function kept(action) {
  try {
    return action(window.sessionStorage);
  } catch {
    return unkept;
  }
}

export const token = {
  get: () => kept((storage) => storage.getItem(KEY)),
  set: (value) => {
    unkept = value;
    kept((storage) => storage.setItem(KEY, value));
  },
  forget: () => {
    unkept = null;
    kept((storage) => storage.removeItem(KEY));
  },
};

// `dispatcher dev` prints a URL with the token after the #. Browsers do not send this part.
// Returns the problem, or "" if there is none.
function fromAddress() {
  const match = /^#token=(.*)$/.exec(window.location.hash);
  if (!match) return "";
  history.replaceState(null, "", window.location.pathname);
  try {
    token.set(decodeURIComponent(match[1]));
  } catch {
    return "The token in the link can't be read: it is cut off, or wrongly encoded. Unlock with the token itself.";
  }
  return "";
}

export const wrongLink = fromAddress();

async function ask(path, options = {}, given = token.get()) {
  const headers = { Accept: "application/json", ...options.headers };
  if (given) headers.Authorization = `Bearer ${given}`;
  const signal = AbortSignal.timeout(10_000);
  const answer = await fetch(`api/${path}`, { ...options, headers, signal, cache: "no-store", credentials: "omit" });
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, content.error ?? `The dispatcher answers ${answer.status}.`);
  return content;
}

export function get(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null)).toString();
  return ask(query ? `${path}?${query}` : path);
}

export function post(path, body = {}, given = undefined) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body) }, given);
}
