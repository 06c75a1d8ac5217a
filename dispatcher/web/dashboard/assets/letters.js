// The dead letters: a search, and groups by receiver and error. A group loads its letters when it is opened.

import { get, post } from "./api.js";
import { confirm } from "./dialogs.js";
import { byId, element, toast, write } from "./dom.js";
import { count, moment, orMore } from "./format.js";
import { LetterView } from "./letter.js";
import { Runs } from "./runs.js";

const LOCKED = "Dead letters hold documents: unlock to see them.";
const CLOSED =
  "Dead letters hold documents, and are shown only on the dispatcher's own machine. To see them through a proxy or from another machine, start the dispatcher with DISPATCHER_HTTP_TOKEN.";

// Milliseconds after the last key until the search begins.
const TYPING_MS = 300;

const letters = (number) => `${count(number)} dead letter${number === 1 ? "" : "s"}`;

export class Letters {
  constructor() {
    this.place = byId("letters");
    this.search = new Search(() => this.find());
    this.runs = new Runs(byId("letter-runs"));
    this.groups = new Map();
    this.seen = null;
    this.found = 0;
    this.mayChange = false;
    byId("retry-found").addEventListener("click", () => this.act("retry", this.search.values(), this.found, "the search results"));
    byId("drop-found").addEventListener("click", () => this.act("drop", this.search.values(), this.found, "the search results"));
  }

  // The state has the count and the newest time by receiver.
  async update(state) {
    this.mayChange = state.may_change;
    const number = `${count(state.dead_letter_count)} ${orMore(state, "dead_letters")}`.trim();
    write(byId("letter-count"), state.dead_letter_count ? number : "");
    this.search.offer(state.dead_letters);
    for (const group of this.groups.values()) group.showButtons();
    const seen = JSON.stringify([state.dead_letters, state.may_read]);
    byId("letters-locked").hidden = state.may_read;
    write(byId("letters-locked"), state.token_set ? LOCKED : CLOSED);
    byId("letter-search").hidden = !state.may_read || !(state.dead_letter_count || this.search.active);
    if (!state.may_read) return this.clear();
    this.showActions();
    if ((seen === this.seen && !this.retrying) || this.inUse) return;
    this.seen = seen;
    await this.load();
    // The state is a little older than the groups. If they differ, the groups are loaded again.
    if (!this.search.active && this.found !== state.dead_letter_count) this.seen = null;
  }

  // Without access to documents, no dead letter is shown.
  clear() {
    this.seen = null;
    this.found = 0;
    this.groups.clear();
    this.place.replaceChildren();
    this.showActions();
  }

  // A user reads an open dead letter: new or removed dead letters must not move it.
  get inUse() {
    return this.place.querySelector("details.letter[open]") !== null;
  }

  get retrying() {
    return this.runs.active || [...this.groups.values()].some((group) => group.row.retrying);
  }

  showActions() {
    const hidden = !this.mayChange || !this.found;
    byId("found-actions").hidden = hidden;
    write(byId("retry-found"), `Retry all ${count(this.found)}`);
    write(byId("drop-found"), `Drop all ${count(this.found)}`);
  }

  async reload() {
    this.seen = null;
    try {
      await this.load();
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  // A search that finds one group opens it.
  async find() {
    await this.reload();
    if (this.groups.size === 1) for (const group of this.groups.values()) group.details.open = true;
  }

  async load() {
    const { groups, complete } = await get("letters/groups", this.search.values());
    const kept = new Map();
    for (const row of groups) {
      const key = JSON.stringify([row.receiver, row.error, row.reason]);
      const group = this.groups.get(key) ?? new GroupView(this, groups.length === 1);
      kept.set(key, group);
      group.show(row);
    }
    this.groups = kept;
    this.found = groups.reduce((sum, row) => sum + row.count, 0);
    byId("letters-partly").hidden = complete;
    const nodes = [...kept.values()].map((group) => group.details);
    if (!nodes.length) nodes.push(element("p", { class: "empty" }, this.search.active ? "No dead letters match." : "None."));
    // A node that stays in its place keeps the focus.
    if (nodes.length !== this.place.childNodes.length || nodes.some((node, at) => node !== this.place.childNodes[at]))
      this.place.replaceChildren(...nodes);
    this.showActions();
  }

  // Retry or drop all dead letters of a selection.
  async act(what, selection, number, title) {
    const texts = {
      retry: [`Retry ${letters(number)}?`, "The dispatchers deliver them again. You can stop the retries that have not begun.", "Retry"],
      drop: [`Drop ${letters(number)}?`, "The deliveries are forgotten. This can't be undone. Dead letters that are being retried stay.", "Drop"],
    };
    if (await confirm(...texts[what])) await this.runs.start(what, selection, number, title);
    await this.reload();
  }

  async stop(selection) {
    try {
      await this.runs.stop(selection);
    } catch (error) {
      toast(error.message, "bad");
    }
    await this.reload();
  }

  // An action on one dead letter.
  async actOnOne(button, path, id, message) {
    button.disabled = true;
    try {
      await post(path, { ids: [id] });
      toast(message);
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      button.disabled = false;
    }
    await this.reload();
  }
}

// The search: by id, receiver, reason and time.
class Search {
  constructor(onChange) {
    this.form = byId("letter-search");
    this.receiver = byId("search-receiver");
    let timer = null;
    this.form.addEventListener("change", onChange);
    byId("search-text").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(onChange, TYPING_MS);
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      onChange();
    });
    this.form.addEventListener("reset", () => setTimeout(onChange));
  }

  // The values as parameters; null selects all.
  values() {
    const time = (id) => (byId(id).value ? new Date(byId(id).value).toISOString() : null);
    return {
      text: byId("search-text").value.trim() || null,
      receiver: this.receiver.value ? this.receiver.value.slice(1) : null,
      reason: byId("search-reason").value || null,
      since: time("search-since"),
      until: time("search-until"),
    };
  }

  get active() {
    return Object.values(this.values()).some((value) => value !== null);
  }

  // Offers the receivers with dead letters. A value begins with "=", because the name of a receiver may be empty.
  offer(counted) {
    const names = [...new Set(counted.map((one) => one.receiver ?? ""))].sort();
    const chosen = this.receiver.value;
    if (chosen && !names.includes(chosen.slice(1))) names.push(chosen.slice(1));
    const wanted = ["", ...names.map((name) => `=${name}`)];
    if (wanted.join("\n") === [...this.receiver.options].map((option) => option.value).join("\n")) return;
    const title = (value) => (value === "" ? "all" : value.slice(1) || "unreadable changes");
    this.receiver.replaceChildren(...wanted.map((value) => element("option", { value }, title(value))));
    this.receiver.value = chosen;
  }
}

// The dead letters of one receiver with one error.
class GroupView {
  constructor(letters, open) {
    this.letters = letters;
    this.row = null;
    this.shown = new Map();
    this.next = null;
    this.pages = 1;
    this.receiver = element("strong");
    this.error = element("span", { class: "error" });
    this.count = element("span", { class: "count" });
    this.state = element("span", { class: "quiet" });
    this.actions = element("div", { class: "actions" });
    this.list = element("div");
    this.more = element("button", { type: "button", class: "wide", hidden: true, onclick: () => this.load(this.next) }, "Show more");
    const summary = element("summary", {}, this.receiver, this.error, this.count, this.state);
    this.details = element("details", { class: "group" }, summary, this.actions, this.list, this.more);
    this.details.open = open;
    this.details.addEventListener("toggle", () => this.details.open && this.load());
  }

  get selection() {
    const { receiver, error, reason } = this.row;
    return { ...this.letters.search.values(), receiver: receiver ?? "", error: error ?? "", reason };
  }

  show(row) {
    const changed = JSON.stringify(row) !== JSON.stringify(this.row);
    this.row = row;
    write(this.receiver, row.receiver ?? "unreadable changes");
    write(this.error, row.message || row.error || row.reason);
    this.error.title = `${row.error ?? ""} (${row.reason})`;
    write(this.count, count(row.count));
    write(this.state, row.retrying ? `${count(row.retrying)} being retried` : moment(row.newest_at));
    this.showButtons();
    if (changed && this.details.open && this.pages === 1) this.load();
  }

  showButtons() {
    const row = this.row;
    const buttons = [];
    const title = `${row.receiver ?? "unreadable changes"}: ${row.error ?? row.reason}`;
    const button = (text, action, kind = "") => buttons.push(element("button", { type: "button", class: kind, onclick: action }, text));
    if (this.letters.mayChange) {
      button(`Retry ${letters(row.count)}`, () => this.letters.act("retry", this.selection, row.count, title), "primary");
      button(`Drop ${letters(row.count)}`, () => this.letters.act("drop", this.selection, row.count, title));
      if (row.retrying) button("Stop retries", () => this.letters.stop(this.selection));
    }
    const texts = (nodes) => JSON.stringify([...nodes].map((node) => node.textContent));
    if (texts(buttons) !== texts(this.actions.childNodes)) this.actions.replaceChildren(...buttons);
    for (const shown of this.shown.values()) shown.showButtons();
  }

  async load(before = null) {
    let answer;
    try {
      answer = await get("letters", { ...this.selection, before });
    } catch (error) {
      return toast(error.message, "bad");
    }
    this.next = answer.next;
    this.pages = before === null ? 1 : this.pages + 1;
    this.more.hidden = answer.next === null;
    const kept = new Map(answer.letters.map((letter) => [letter.id, this.shown.get(letter.id) ?? new LetterView(this.letters)]));
    for (const letter of answer.letters) kept.get(letter.id).show(letter);
    const nodes = [...kept.values()].map((shown) => shown.details);
    if (before === null) {
      this.shown = kept;
      this.list.replaceChildren(...nodes);
    } else {
      kept.forEach((shown, id) => this.shown.set(id, shown));
      this.list.append(...nodes);
    }
  }
}
