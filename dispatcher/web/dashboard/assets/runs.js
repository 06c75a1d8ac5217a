// Retries and drops of many dead letters: each takes steps, shows its progress, and can be stopped.
// If the page is closed, no further steps follow; retries that were requested are made.

import { get, post } from "./api.js";
import { breakable, element, write } from "./dom.js";
import { count } from "./format.js";

const EVERY_MS = 1000;

const pause = () => new Promise((resolve) => setTimeout(resolve, EVERY_MS));

export class Runs {
  constructor(place) {
    this.place = place;
    this.all = [];
  }

  get active() {
    return this.all.some((run) => !run.ended);
  }

  // The run goes on by itself. Resolves after its first step.
  async start(what, selection, number, title) {
    const run = new Run(what, selection, number, title);
    this.all.push(run);
    this.place.append(run.card);
    run.closed = () => {
      this.all = this.all.filter((one) => one !== run);
      run.card.remove();
    };
    await run.begin();
  }

  // Stops the retries of a selection, also those that another page or a command has requested.
  async stop(selection) {
    const own = this.all.find((run) => !run.ended && JSON.stringify(run.selection) === JSON.stringify(selection));
    if (own) await own.stop();
    else await post("letters/stop", { ...selection, all: true });
  }
}

class Run {
  constructor(what, selection, number, title) {
    this.what = what;
    this.selection = selection;
    this.number = number;
    this.changed = 0;
    this.began = null;
    this.stopped = false;
    this.ended = false;
    this.bar = element("progress", { max: number || 1, value: 0, ariaLabel: `${what} of ${title}` });
    this.text = element("span", { role: "status" });
    this.button = element("button", { type: "button", onclick: () => (this.ended ? this.closed() : this.stop()) }, "Stop");
    this.card = element("div", { class: "run" }, element("strong", {}, ...breakable(`${what === "retry" ? "Retry" : "Drop"}: ${title}`)), this.bar, this.text, this.button);
  }

  async begin() {
    write(this.text, `0 of ${count(this.number)}`);
    const more = await this.step();
    if (more !== null) void this.goOn(more);
  }

  // The next step. Returns whether there are more, or null after an error.
  step() {
    this.running = this.takeStep();
    return this.running;
  }

  async takeStep() {
    try {
      const done = await post(`letters/${this.what}`, { ...this.selection, all: true, began: this.began });
      this.began = done.began;
      this.changed += done.count;
      if (this.what === "drop") this.show(this.changed, "");
      return done.more;
    } catch (error) {
      this.end(error.message, "bad");
      return null;
    }
  }

  async goOn(more) {
    while (more && !this.stopped) more = await this.step();
    if (more === null || this.stopped) return;
    if (this.what === "drop") return this.end(`${count(this.changed)} dropped.`);
    await this.follow();
  }

  // Shows the outcomes of the retries until all are known.
  async follow() {
    for (;;) {
      let left = null;
      try {
        const state = await get("letters/retried", { ...this.selection, began: this.began });
        if (this.stopped) return;
        left = state.left;
        const failures = [state.failed ? `${count(state.failed)} failed again` : "", state.refused ? `${count(state.refused)} refused` : ""];
        const more = failures.filter(Boolean).join(", ");
        this.number = Math.max(this.changed, 1);
        if (!left) return this.end(`${count(this.changed)} of ${count(this.changed)} done${more ? `: ${more}` : ""}.`, more ? "bad" : "");
        this.show(Math.max(0, this.changed - left), more);
      } catch (error) {
        write(this.text, error.message); // it asks again
      }
      await pause();
      if (this.stopped) return;
    }
  }

  show(done, more) {
    this.bar.max = Math.max(this.number, done, 1);
    this.bar.value = done;
    write(this.text, `${count(done)} of ${count(Math.max(this.number, done))}${more ? `: ${more}` : ""}`);
  }

  // A step that has begun is finished first: it may request further retries.
  async stop() {
    this.stopped = true;
    if ((await this.running) === null) return;
    if (this.what === "drop") return this.end(`Stopped: ${count(this.changed)} dropped.`);
    try {
      const { count: withdrawn } = await post("letters/stop", { ...this.selection, all: true });
      this.end(`Stopped: ${count(withdrawn)} not retried. Retries that have begun go on.`);
    } catch (error) {
      this.end(`The retries go on: ${error.message}`, "bad");
    }
  }

  end(text, kind = "") {
    this.ended = true;
    if (!this.stopped && kind !== "bad") this.bar.value = this.bar.max;
    write(this.text, text);
    this.text.className = kind;
    write(this.button, "Close");
  }
}
