// The panels: figures, receivers, partitions, members, parked deliveries, runs and gaps.

import { Table, byId, column, element, write } from "./dom.js";
import { TONES, DASH, ago, count, duration, orMore, rate, since } from "./format.js";

const TILES = [
  ["Deliveries", (s) => [rate(s.figures.delivered), "/s"]],
  ["Lag", (s) => [duration(s.figures.lag_seconds)], (s) => level(s.figures.lag_seconds, 10, 60)],
  ["Latency p99", (s) => [duration(s.figures.p99_seconds)]],
  ["In flight", (s) => [count(s.figures.in_flight)]],
  ["Dead letters", (s) => [count(s.dead_letter_count), orMore(s, "dead_letters")], (s) => level(s.dead_letter_count, 1, 100)],
  ["Parked", (s) => [count(s.parked_deliveries), orMore(s, "parked_deliveries")], (s) => level(s.parked_deliveries, 1, Infinity)],
  ["Members", (s) => [count(s.members.filter((one) => one.alive).length)], (s) => (anyAlive(s) ? "" : "bad")],
  ["Oplog left", (s) => [duration(s.headroom_seconds)], (s) => oplogLevel(s)],
];

const level = (value, warn, bad) => (value >= bad ? "bad" : value >= warn ? "warn" : "");
const anyAlive = (state) => state.members.some((one) => one.alive);
const oplogLevel = (s) =>
  s.headroom_seconds !== null && s.oplog_window_seconds ? level(-s.headroom_seconds / s.oplog_window_seconds, -0.5, -0.2) : "";

export class Panels {
  constructor(actions) {
    this.actions = actions;
    this.tiles = TILES.map(([title, text, tone]) => {
      const value = element("span");
      const unit = element("small");
      const tile = element("dl", { class: "tile" }, element("dt", {}, title), element("dd", {}, value, " ", unit));
      byId("tiles").append(tile);
      return { tile, value, unit, text, tone: tone ?? (() => "") };
    });
    this.receivers = new Table(byId("receivers"), this.receiverColumns(), "No live member reports its receivers.");
    this.partitions = new Table(byId("partitions"), partitionColumns(), "No position is saved yet.");
    this.members = new Table(byId("members"), memberColumns(), "No dispatcher of this group runs.");
    this.parked = new Table(byId("parked"), parkedColumns(), "Nothing waits.");
    this.runs = new Table(byId("runs"), runColumns(), "None.");
    this.gaps = new Table(byId("gaps"), gapColumns(), "None.");
    this.misfits = new Table(byId("misfits"), misfitColumns(), "None.");
  }

  show(state) {
    for (const { tile, value, unit, text, tone } of this.tiles) {
      const [shown, suffix = ""] = text(state);
      write(value, shown);
      write(unit, suffix);
      tile.className = `tile ${tone(state)}`.trim();
    }
    const dated = (rows) => rows.map((row) => ({ ...row, now: state.at, mayChange: state.may_change }));
    this.receivers.show(dated(state.receivers));
    this.partitions.show(dated(state.partitions.map((one) => ({ ...one, key: one.number }))));
    this.members.show(dated(state.members.map((one) => ({ ...one, key: one.id }))));
    this.parked.show(dated(state.parked.map((one) => ({ ...one, key: `${one.receiver} ${one.reason}` }))));
    this.runs.show(dated(state.runs.map((one) => ({ ...one, key: one.id }))));
    this.gaps.show(dated(state.gaps.map((one) => ({ ...one, key: one.id }))));
    this.misfits.show(dated(state.misfits));
    byId("parked-section").hidden = !state.parked.length;
    byId("runs-section").hidden = !state.runs.length;
    byId("gaps-section").hidden = !state.gaps.length;
    byId("misfits-section").hidden = !state.misfits.length;
  }

  receiverColumns() {
    const toggle = {
      title: "",
      kind: "do",
      fill: (cell, row) => {
        if (!row.mayChange || !(row.known || row.paused)) return cell.replaceChildren();
        const button = cell.firstChild ?? cell.appendChild(element("button", { type: "button" }));
        write(button, row.paused ? "Resume" : "Pause");
        button.ariaLabel = `${row.paused ? "Resume" : "Pause"} ${row.name}`;
        button.onclick = () => this.actions.toggle(row, button);
      },
    };
    return [
      column("Receiver", (row) => row.name),
      column("Signal", (row) => row.documents.length ? `${row.signal} of ${row.documents.join(", ")}` : row.signal),
      column("State", (row) => row.health, { tone: (row) => TONES[row.health], hint: (row) => row.why }),
      column("Per second", (row) => rate(row.window.rate("delivered")), { number: true }),
      column("Delivered", (row) => count(row.delivered), { number: true }),
      column("Retried", (row) => count(row.retried), { number: true, tone: (row) => (row.window.rate("retried") ? "warn" : "") }),
      column("Given up", (row) => count(row.failed), { number: true, tone: (row) => (row.window.rate("failed") ? "bad" : "") }),
      column("Takes", (row) => duration(row.window.mean("duration_sum", "duration_count")), { number: true }),
      column("Dead letters", (row) => count(row.dead_letters), { number: true, tone: (row) => (row.dead_letters ? "bad" : "quiet") }),
      toggle,
    ];
  }
}

const partitionColumns = () => [
  column("Partition", (row) => String(row.number)),
  column("Owner", (row) => row.where ?? "none", { tone: (row) => (row.where ? "" : "warn") }),
  column("Term", (row) => count(row.term), { number: true }),
  column("Lag", (row) => duration(row.lag_seconds), { number: true }),
  column("Changes behind", (row) => count(row.lag_changes), { number: true }),
  column("Position", (row) => ago(row.position_age_seconds), { number: true }),
  column("Would be lost in", (row) => duration(row.headroom_seconds), { number: true }),
];

const memberColumns = () => [
  column("Member", (row) => `${row.host}, pid ${row.pid}`),
  column("State", (row) => memberState(row), { tone: (row) => (row.alive ? "good" : "bad") }),
  column("Partitions", (row) => row.partitions.join(", ") || "none: standby"),
  column("Per second", (row) => rate(row.stats?.per_second?.deliveries), { number: true }),
  column("In flight", (row) => count(row.stats?.in_flight), { number: true }),
  column("Version", (row) => row.version.slice(0, 8)),
  column("Since", (row) => since(row.started_at, row.now), { number: true }),
];

const memberState = (row) => (row.alive ? "alive" : `silent for ${duration(row.seen_seconds)}`);

const parkedColumns = () => [
  column("Receiver", (row) => row.receiver ?? DASH),
  column("Why", (row) => row.reason ?? DASH),
  column("Documents", (row) => count(row.documents), { number: true }),
  column("Next attempt", (row) => until(row.due_at, row.now), { number: true }),
];

function until(due, now) {
  if (!due) return DASH;
  const seconds = (Date.parse(due) - Date.parse(now)) / 1000;
  return seconds > 0 ? `in ${duration(seconds)}` : "due";
}

const runColumns = () => [
  column("Run", (row) => `${row.what} ${row.id}`),
  column("To", (row) => row.receivers.join(", ") || "all receivers"),
  column("State", (row) => row.status, { tone: (row) => (row.status === "stopped" ? "warn" : "good") }),
  column("Delivered", (row) => count(row.delivered), { number: true }),
  column("Given up", (row) => count(row.failed), { number: true, tone: (row) => (row.failed ? "bad" : "") }),
  column("Begun", (row) => since(row.started_at, row.now), { number: true }),
  column("Last heard of", (row) => since(row.beat_at, row.now), { number: true }),
];

const gapColumns = () => [
  column("When", (row) => since(row.noted_at, row.now)),
  column("What", (row) => row.kind, { tone: () => "bad" }),
  column("Where", (row) => row.namespace ?? DASH),
  column("", (row) => row.text),
];

const misfitColumns = () => [
  column("Where", (row) => row.collection),
  column("Document", (row) => row.id),
  column("Problem", (row) => row.problem, { tone: () => "bad" }),
  column("Remedy", (row) => row.remedy),
];
