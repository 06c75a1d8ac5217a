// One dead letter. It is loaded in full when it is opened.

import { get } from "./api.js";
import { confirm } from "./dialogs.js";
import { breakable, element, toast, write } from "./dom.js";
import { bytes, moment } from "./format.js";

export class LetterView {
  constructor(letters) {
    this.letters = letters;
    this.letter = null;
    this.where = element("span", { class: "mono" });
    this.id = element("span", { class: "mono quiet" });
    this.error = element("span", { class: "error" });
    this.state = element("span", { class: "quiet" });
    this.buttons = element("div", { class: "actions" });
    this.body = element("div", { class: "body" });
    const summary = element("summary", {}, this.id, this.where, this.error, this.state);
    this.details = element("details", { class: "letter" }, summary, this.body);
    this.details.addEventListener("toggle", () => this.details.open && this.open());
  }

  show(letter) {
    this.letter = letter;
    write(this.id, letter.short_id);
    write(this.where, letter.namespace ? `${letter.namespace} ${letter.key ?? ""}` : "unreadable change");
    write(this.error, letter.error_message || letter.error_type);
    write(this.state, letter.retrying ? "is tried again" : moment(letter.last_attempt_at));
    this.showButtons();
  }

  async open() {
    if (this.body.childNodes.length) return;
    let full;
    try {
      full = await get("letter", { id: this.letter.id });
    } catch (error) {
      toast(error.message, "bad");
      return;
    }
    this.body.replaceChildren(facts(full), ...full.parts.map(part), traceback(full), this.buttons);
  }

  showButtons() {
    if (!this.letters.mayChange) return this.buttons.replaceChildren();
    if (this.buttons.childNodes.length) return;
    const retry = element("button", { type: "button", class: "primary" }, "Retry");
    const drop = element("button", { type: "button" }, "Drop");
    retry.onclick = async () => {
      this.details.open = false;
      await this.letters.actOnOne(retry, "letters/retry", this.letter.id, "Retry requested.");
    };
    drop.onclick = async () => {
      const sure = await confirm("Drop this letter?", "The delivery is forgotten. This can't be undone.", "Drop");
      if (sure) await this.letters.actOnOne(drop, "letters/drop", this.letter.id, "Dropped.");
    };
    this.buttons.replaceChildren(retry, drop);
  }
}

function facts(full) {
  const rows = [
    ["Letter", full.short_id],
    ["Receiver", full.receiver],
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
  const shown = present.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, ...breakable(String(value)))));
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
