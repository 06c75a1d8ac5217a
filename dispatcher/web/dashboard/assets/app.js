// The dashboard: asks the dispatcher for its state while the page is visible.

import { Refused, get, post, token, wrongLink } from "./api.js";
import { confirm, setUpUnlocking } from "./dialogs.js";
import { byId, toast, write } from "./dom.js";
import { Letters } from "./letters.js";
import { TONES } from "./format.js";
import { Panels } from "./panels.js";
import { Plots, ReceiverPlots, range } from "./plots.js";
import { Rates, Windows, pointOf, pointsOf } from "./rates.js";
import { ManySeries } from "./series.js";

const EVERY_MS = 2000;

// After a pause of this length, for example in a hidden tab, the page loads the history from the dispatcher again.
const STALE_MS = 90_000;

class App {
  constructor() {
    this.plots = null;
    this.panels = null;
    this.letters = new Letters();
    this.receivers = new Windows();
    this.series = new ManySeries();
    this.chart = new ReceiverPlots();
    this.rates = null;
    this.shownAt = 0;
    this.turn = 0;
    this.timer = null;
    setUpUnlocking(() => this.refresh());
    byId("range").addEventListener("change", () => this.state && this.showReceivers(this.state));
    byId("pause-all").addEventListener("click", () => this.toggleAll());
    document.addEventListener("visibilitychange", () => !document.hidden && this.refresh());
  }

  // Only the answer to the newest request is shown. Earlier answers lack later actions, such as unlocking.
  async refresh() {
    clearTimeout(this.timer);
    const turn = ++this.turn;
    try {
      if (Date.now() - this.shownAt > STALE_MS) await this.loadHistory();
      const state = await get("state");
      if (turn !== this.turn) return;
      await this.show(state);
      write(byId("trouble"), state.trouble);
      byId("trouble").hidden = !state.trouble;
    } catch (error) {
      if (turn !== this.turn) return;
      this.complain(error);
    }
    if (turn === this.turn && !document.hidden) this.timer = setTimeout(() => this.refresh(), EVERY_MS);
  }

  async loadHistory() {
    const { bounds, steps, receivers, last } = await get("history");
    this.rates = new Rates(bounds);
    if (last) this.rates.point(last);
    this.history = steps.map((step) => pointOf(step, bounds));
    this.series = new ManySeries(Object.fromEntries(Object.entries(receivers).map(([key, one]) => [key, pointsOf(one, steps)])));
  }

  async show(state) {
    this.state = state;
    this.shownAt = Date.now();
    state.figures = this.rates.point(state.sample);
    const kind = JSON.stringify([state.is_relay, state.source.topic]);
    this.kind ??= kind;
    if (kind !== this.kind) return window.location.reload(); // a process learns its kind from its first look at the state
    this.panels ??= new Panels(state, {
      toggle: (row, button) => this.toggleReceiver(row, button),
      chart: (row) => {
        this.chart.toggle(row);
        this.chart.draw(this.series);
      },
    });
    this.plots ??= new Plots(state.is_relay);
    if (this.history) this.plots.begin(this.history);
    this.history = null;
    this.plots.add(state.figures);
    this.receivers.add(Object.fromEntries(state.receivers.map((row) => [row.key, { ...row, at: state.sample.at }])));
    this.series.add(Object.fromEntries(state.receivers.map((row) => [row.key, this.pointOfReceiver(row, state)])));
    if (token.get() && !state.may_change) token.forget();
    this.showHeader(state);
    this.panels.show(state);
    this.showReceivers(state);
    if (!state.is_relay) await this.letters.update(state);
    document.body.dataset.loaded = "yes";
  }

  pointOfReceiver(row, state) {
    row.window = this.receivers.get(row.key);
    const rate = (name) => row.window.rate(name);
    return { at: state.sample.at, delivered: rate("delivered"), failed: rate("failed"), retried: rate("retried") };
  }

  // The rows of the receivers with their charts over the chosen time.
  showReceivers(state) {
    const now = state.sample.at;
    const rows = state.receivers.map((row) => ({ ...row, now, seconds: range(), points: this.series.since(row.key, range()) }));
    this.panels.showReceivers(rows, state.may_change);
    this.chart.draw(this.series);
  }

  complain(error) {
    const locked = error instanceof Refused && error.status === 401;
    if (locked) token.forget();
    byId("unlock").hidden = !locked && byId("unlock").hidden;
    const text = error instanceof Refused ? error.message : "The dispatcher does not answer. This page tries again.";
    write(byId("trouble"), text);
    byId("trouble").hidden = false;
    const status = byId("status");
    write(status, locked ? "locked" : "no answer");
    write(byId("why"), "");
    status.className = "pill bad";
  }

  showHeader(state) {
    document.title = `${state.group} · dispatcher`;
    write(byId("group"), state.group);
    write(byId("where"), `${state.address} · ${state.version}`);
    write(byId("status"), state.health.health);
    byId("status").className = `pill ${TONES[state.health.health]}`;
    write(byId("why"), state.health.why);
    byId("unlock").hidden = state.is_relay || !state.token_set || state.may_change;
    byId("read-only").hidden = state.is_relay || state.token_set;
    byId("pause-all").hidden = state.is_relay || !state.may_change;
    write(byId("pause-all"), state.paused_all ? "Resume" : "Pause everything");
  }

  async toggleAll() {
    const paused = this.state.paused_all;
    if (!paused && !(await confirm("Pause everything?", `Changes wait until you resume. Nothing is lost as long as the ${this.state.source.topic ? "topic" : "oplog"} holds them.`, "Pause"))) return;
    await this.act(byId("pause-all"), paused ? "resume" : "pause", { receiver: null });
  }

  async toggleReceiver(row, button) {
    await this.act(button, row.paused ? "resume" : "pause", { receiver: row.name });
  }

  async act(button, path, body) {
    button.disabled = true;
    try {
      const { message } = await post(path, body);
      toast(message);
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      button.disabled = false;
    }
    await this.refresh();
  }
}

if (wrongLink) toast(wrongLink, "bad");
new App().refresh();
