// The dead letters. The list is loaded again when it changes; a dead letter is loaded in full when it is opened.

import { get, post } from "./api.js";
import { confirm } from "./dialogs.js";
import { byId, element, toast, write } from "./dom.js";
import { bytes, count, moment, orMore } from "./format.js";

const EVERYBODY = "";

const LOCKED = "Dead letters hold documents: unlock to see them.";
const CLOSED =
  "Dead letters hold documents, and are shown only on the dispatcher's own machine. To see them through a proxy or from another machine, start the dispatcher with DISPATCHER_HTTP_TOKEN.";

export class Letters {
  constructor() {
    this.place = byId("letters");
    this.filter = byId("letter-filter");
    this.more = byId("more-letters");
    this.retryShown = byId("retry-shown");
    this.shown = new Map();
    this.seen = null;
    this.next = null;
    this.pages = 1;
    this.mayChange = false;
    this.filter.addEventListener("change", () => this.load());
    this.more.addEventListener("click", () => this.load(this.next));
    this.retryShown.addEventListener("click", () => this.retryAll());
  }

  // The state has the count and the newest time by receiver.
  async update(state) {
    this.mayChange = state.may_change;
    const number = `${count(state.dead_letter_count)} ${orMore(state, "dead_letters")}`.trim();
    write(byId("letter-count"), state.dead_letter_count ? number : "");
    this.retryShown.hidden = !this.mayChange || !state.dead_letter_count;
    this.showFilter(state.dead_letters);
    for (const shown of this.shown.values()) this.showButtons(shown);
    const seen = JSON.stringify([state.dead_letters, state.may_read]);
    byId("letters-locked").hidden = state.may_read;
    write(byId("letters-locked"), state.token_set ? LOCKED : CLOSED);
    if (!state.may_read) return this.clear();
    if (seen === this.seen || this.inUse) return;
    this.seen = seen;
    await this.load();
    // The state is a little older than the list. If they differ, the list is loaded again.
    const counted = state.dead_letters.filter((one) => !this.filter.value || one.receiver === this.filter.value);
    const expected = counted.reduce((sum, one) => sum + one.count, 0);
    if (this.shown.size !== expected && this.next === null) this.seen = null;
  }

  // Without access to documents, no dead letter is shown.
  clear() {
    this.seen = null;
    this.pages = 1;
    this.shown.clear();
    this.more.hidden = true;
    this.place.replaceChildren();
  }

  // A user reads an open dead letter: new or removed dead letters must not move it.
  get inUse() {
    return this.pages > 1 || this.place.querySelector("details[open]") !== null;
  }

  showFilter(letters) {
    byId("letter-filtering").hidden = !letters.length;
    const names = [...new Set(letters.map((one) => one.receiver ?? "?"))].sort();
    const wanted = [EVERYBODY, ...names];
    const is = [...this.filter.options].map((option) => option.value);
    if (wanted.join("\n") === is.join("\n")) return;
    const chosen = this.filter.value;
    this.filter.replaceChildren(
      ...wanted.map((name) => element("option", { value: name }, name === EVERYBODY ? "all receivers" : name)),
    );
    this.filter.value = wanted.includes(chosen) ? chosen : EVERYBODY;
  }

  async load(before = null) {
    const answer = await get("letters", { receiver: this.filter.value || null, before });
    this.next = answer.next;
    this.pages = before === null ? 1 : this.pages + 1;
    this.more.hidden = answer.next === null;
    const kept = new Map();
    const nodes = answer.letters.map((letter) => {
      const shown = this.shown.get(letter.id) ?? this.make(letter);
      shown.letter = letter;
      write(shown.state, letter.retrying ? "is tried again" : moment(letter.last_attempt_at));
      this.showButtons(shown);
      kept.set(letter.id, shown);
      return shown.details;
    });
    if (before === null) {
      this.shown = kept;
      if (!nodes.length) nodes.push(element("p", { class: "empty" }, "None."));
      this.place.replaceChildren(...nodes);
    } else {
      kept.forEach((shown, id) => this.shown.set(id, shown));
      this.place.append(...nodes);
    }
  }

  make(letter) {
    const body = element("div", { class: "body" });
    const state = element("span", { class: "quiet" });
    const where = letter.namespace ? `${letter.namespace} ${letter.key ?? ""}` : "unreadable change";
    const summary = element(
      "summary",
      {},
      element("strong", {}, letter.receiver ?? "every receiver"),
      element("span", { class: "mono" }, where),
      element("span", { class: "error" }, letter.error_message || letter.error_type),
      state,
    );
    const buttons = element("div", { class: "actions" });
    const details = element("details", { class: "letter" }, summary, body);
    const shown = { letter, details, body, state, buttons };
    details.addEventListener("toggle", () => details.open && this.open(shown));
    return shown;
  }

  async open(shown) {
    if (shown.body.childNodes.length) return;
    let full;
    try {
      full = await get("letter", { id: shown.letter.id });
    } catch (error) {
      toast(error.message, "bad");
      return;
    }
    shown.body.replaceChildren(facts(full), ...full.parts.map(part), traceback(full), shown.buttons);
    this.showButtons(shown);
  }

  showButtons(shown) {
    if (!this.mayChange) return shown.buttons.replaceChildren();
    if (shown.buttons.childNodes.length) return;
    const retry = element("button", { type: "button", class: "primary" }, "Retry");
    const drop = element("button", { type: "button" }, "Drop");
    retry.onclick = async () => {
      await this.act(retry, () => post("letters/retry", { ids: [shown.letter.id] }), "Retry requested.");
      shown.details.open = false;
    };
    drop.onclick = async () => {
      const sure = await confirm("Drop this letter?", "The delivery is forgotten. This can't be undone.", "Drop");
      if (sure) await this.act(drop, () => post("letters/drop", { ids: [shown.letter.id] }), "Dropped.");
    };
    shown.buttons.replaceChildren(retry, drop);
  }

  async retryAll() {
    const receiver = this.filter.value || null;
    const selection = receiver === null ? "all dead letters" : `all dead letters of ${receiver}`;
    if (!(await confirm("Retry?", `The dispatcher delivers ${selection} again.`, "Retry"))) return;
    await this.act(this.retryShown, () => post("letters/retry", { receiver, all: true }), "Retry requested.");
  }

  async act(button, what, message) {
    button.disabled = true;
    try {
      const { count: changed } = await what();
      toast(changed === 1 ? message : `${count(changed)} letters: ${message.toLowerCase()}`);
      this.seen = null;
      await this.load();
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      button.disabled = false;
    }
  }
}

function facts(full) {
  const rows = [
    ["Letter", full.short_id],
    ["Signal", full.signal],
    ["Document", full.document],
    ["Why", full.reason],
    ["Error", full.error_type],
    ["Attempts", full.retries ? `${full.attempts}, and ${full.retries} retries` : full.attempts],
    ["First attempt", moment(full.first_attempt_at)],
    ["Last attempt", moment(full.last_attempt_at)],
    ["Changed", full.update_fields?.join(", ")],
    ["Committed", moment(full.wall_time)],
    ["Delivery", full.delivery_id],
    ["Retry refused", full.retry_refused],
  ];
  const present = rows.filter(([, value]) => value);
  const shown = present.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value))));
  return element("dl", { class: "facts" }, ...shown);
}

const NAMES = { document: "The document after the change", before: "The document before the change", event: "The change event" };

function part({ name, text, size }) {
  const shown = text ?? `${bytes(size)}: too long to be shown here. dispatcher dead-letters show has it in full.`;
  return element("div", {}, element("small", {}, NAMES[name] ?? name), element("pre", {}, shown));
}

function traceback(full) {
  return element("div", {}, element("small", {}, "Traceback"), element("pre", {}, full.traceback || full.error_message));
}
