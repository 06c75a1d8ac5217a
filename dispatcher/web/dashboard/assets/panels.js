// The panels: figures, relay, receivers, partitions, members, parked deliveries, claims, runs and gaps.

import { Table, byId, column, element, write } from "./dom.js";
import { TONES, DASH, ago, count, duration, orMore, percent, ranges, rate, since } from "./format.js";
import { Spark } from "./spark.js";

const DELIVERIES = ["Deliveries", (s) => [rate(s.figures.delivered), "/s"]];
const LAG = ["Lag", (s) => [duration(s.figures.lag_seconds)], (s) => level(s.figures.lag_seconds, 10, 60)];
const DELIVERY_LAG = ["Delivery lag", (s) => [duration(s.delivery_lag_seconds)], (s) => level(s.delivery_lag_seconds, 10, 60)];
const MEMBERS = ["Members", (s) => [count(s.members.filter((one) => one.alive).length)], (s) => (anyAlive(s) ? "" : "bad")];
const OPLOG = ["Oplog left", (s) => [duration(s.headroom_seconds)], (s) => oplogLevel(s)];
const TOPIC = ["Topic left", (s) => [duration(s.headroom_seconds)], (s) => topicLevel(s)];
const OF_RECEIVERS = [
  ["Latency p99", (s) => [duration(s.figures.p99_seconds)]],
  ["In flight", (s) => [count(s.figures.in_flight)]],
  ["Dead letters", (s) => [count(s.dead_letter_count), orMore(s, "dead_letters")], (s) => level(s.dead_letter_count, 1, 100)],
  ["Parked", (s) => [count(s.parked_deliveries), orMore(s, "parked_deliveries")], (s) => level(s.parked_deliveries, 1, Infinity)],
];

// Tiles with several figures: a name, the text, and the tone of each.
const CLAIMS = [
  "Claims",
  (s) => [
    ["open", `${count(s.claims.open)} ${orMore(s, "claims")}`.trim()],
    ["released", count(s.claims.released)],
    ["taken over", count(s.claims.taken_over)],
    ["orphaned", count(s.claims.orphaned), s.claims.orphaned ? "warn" : ""],
    ["oldest waits", duration(s.claims.oldest_seconds), level(s.claims.oldest_seconds, 60, 300)],
    ["processes", count(s.claims.processes)],
  ],
];
const RELAY = [
  "Relay",
  ({ relay }) => [
    ["state", relay ? (relay.trouble ? "failing" : relayState(relay)) : "none", relay?.owner && !relay.trouble ? "" : "bad"],
    ["alive", count(relay?.alive.length ?? 0), relay?.alive.length ? "" : "bad"],
    ["lag", duration(relay?.lag_seconds), relay?.owner ? level(relay.lag_seconds, 10, 60) : "bad"],
    ["in flight", count(relay?.records_in_flight)],
    ["changes/s", rate(relay?.changes_per_second)],
    ["term", String(relay?.term ?? DASH)],
  ],
];
const BROKER = [
  "Broker",
  (s) => [
    ["answers", anyAlive(s) || s.relay?.alive.length ? (s.broker_troubles.length ? "no" : "yes") : DASH, s.broker_troubles.length ? "bad" : ""],
    ...(s.is_relay ? [["readers", count(s.relay?.readers.length)]] : [["lag in records", count(s.broker_lag)]]),
    ["keeps records", duration(s.relay?.retention_seconds)],
  ],
];

// The figures of a relay, of a group that reads from a topic, or of a group with change streams.
function tilesOf(state) {
  if (state.is_relay)
    return [["Changes", (s) => [rate(s.figures.read), "/s"]], MEMBERS, OPLOG];
  if (state.source.topic) return [DELIVERIES, DELIVERY_LAG, ...OF_RECEIVERS, MEMBERS, TOPIC];
  return [DELIVERIES, LAG, ...OF_RECEIVERS, MEMBERS, OPLOG];
}

function wideTilesOf(state) {
  if (state.is_relay) return [RELAY, BROKER];
  return state.source.topic ? [RELAY, BROKER, CLAIMS] : [CLAIMS];
}

const level = (value, warn, bad) => (value >= bad ? "bad" : value >= warn ? "warn" : "");
const anyAlive = (state) => state.members.some((one) => one.alive);
const oplogLevel = (s) =>
  s.headroom_seconds !== null && s.oplog_window_seconds ? level(-s.headroom_seconds / s.oplog_window_seconds, -0.5, -0.2) : "";

const topicLevel = (s) =>
  s.headroom_seconds !== null && s.relay?.retention_seconds ? level(-s.headroom_seconds / s.relay.retention_seconds, -0.5, -0.2) : "";

export class Panels {
  constructor(state, actions) {
    this.actions = actions;
    this.relay = new Table(byId("relay"), relayColumns(), "No relay has published to this topic.");
    this.readers = new Table(byId("readers"), readerColumns(), "No group reads from the topic.");
    this.publishes = new Table(byId("publishes"), publishedColumns(), "None.");
    byId("relay-section").hidden = !state.is_relay && !state.source.topic;
    for (const section of ["readers-section", "publishes-section"]) byId(section).hidden = !state.is_relay;
    for (const section of ["receivers-section", "letters-section"]) byId(section).hidden = state.is_relay;
    this.tiles = tilesOf(state).map(([title, text, tone]) => {
      const value = element("span");
      const unit = element("small");
      const tile = element("dl", { class: "tile" }, element("dt", {}, title), element("dd", {}, value, " ", unit));
      byId("tiles").append(tile);
      return { tile, value, unit, text, tone: tone ?? (() => "") };
    });
    this.wide = wideTilesOf(state).map(([title, figures]) => new WideTile(title, figures));
    this.receivers = new Table(byId("receivers"), this.receiverColumns(), "No live member reports its receivers.");
    this.partitions = new Table(byId("partitions"), partitionColumns(state.source.topic), "No position is saved yet.");
    this.members = new Table(byId("members"), memberColumns(), "No dispatcher of this group runs.");
    this.parked = new Table(byId("parked"), parkedColumns(), "Nothing waits.");
    this.claims = new Table(byId("claims"), claimColumns(), "No process claims.");
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
    for (const tile of this.wide) tile.show(state);
    const dated = (rows) => rows.map((row) => ({ ...row, now: state.at, mayChange: state.may_change }));
    write(byId("topic"), topicOf(state));
    const relays = state.relay ? [{ ...state.relay, key: state.relay.topic }] : [];
    this.relay.show(dated(relays));
    this.readers.show(dated(relays.flatMap((relay) => relay.readers.map((one) => ({ ...one, key: one.group })))));
    this.publishes.show(dated(relays.flatMap((relay) => relay.publishes.map((one) => ({ ...one, key: one.name })))));
    this.partitions.show(dated(state.partitions.map((one) => ({ ...one, key: one.number }))));
    this.members.show(dated(state.members.map((one) => ({ ...one, key: one.id }))));
    this.parked.show(dated(state.parked.map((one) => ({ ...one, key: `${one.receiver} ${one.reason}` }))));
    this.claims.show(dated(state.claims.books.map((one) => ({ ...one, key: one.process }))));
    this.runs.show(dated(state.runs.map((one) => ({ ...one, key: one.id }))));
    this.gaps.show(dated(state.gaps.map((one) => ({ ...one, key: one.id }))));
    this.misfits.show(dated(state.misfits));
    byId("parked-section").hidden = !state.parked.length;
    byId("claims-section").hidden = !state.claims.books.length;
    byId("runs-section").hidden = !state.runs.length;
    byId("gaps-section").hidden = !state.gaps.length;
    byId("misfits-section").hidden = !state.misfits.length;
  }

  showReceivers(rows, mayChange) {
    this.receivers.show(rows.map((row) => ({ ...row, mayChange })));
  }

  receiverColumns() {
    const chart = {
      title: "Attempts",
      kind: "chart",
      fill: (cell, row) => {
        if (!cell.spark) {
          cell.spark = new Spark();
          cell.append(element("button", { type: "button", class: "plain" }, cell.spark.node));
        }
        const button = cell.lastChild;
        button.title = `Show the chart of successful and failed attempts of ${row.name}`;
        button.ariaLabel = `Chart of ${row.name}, ${row.signal}`;
        button.onclick = () => this.actions.chart(row);
        cell.spark.show(row.points, row.now, row.seconds);
      },
    };
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
      column("Limits", (row) => row.limits, { hint: () => "attempts at once in each process, attempts in a period, events in a batch" }),
      chart,
      column("Errors", (row) => percent(row.error_rate), { number: true, tone: (row) => errorTone(row.error_rate), hint: () => "failed attempts of the last minute" }),
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

const errorTone = (share) => (share === null ? "quiet" : level(share, 0.001, 0.1));

// A tile with several figures.
class WideTile {
  constructor(title, figures) {
    this.figures = figures;
    this.list = element("dl");
    this.tile = element("section", { class: "tile wide", ariaLabel: title }, element("h3", {}, title), this.list);
    byId("wide-tiles").append(this.tile);
  }

  show(state) {
    const figures = this.figures(state);
    while (this.list.childNodes.length < figures.length) this.list.append(element("div", {}, element("dt"), element("dd")));
    figures.forEach(([name, text, tone = ""], number) => {
      const [title, value] = this.list.childNodes[number].childNodes;
      write(title, name);
      write(value, text);
      value.className = tone;
    });
    const tones = figures.map(([, , tone]) => tone);
    this.tile.className = `tile wide ${tones.includes("bad") ? "bad" : tones.includes("warn") ? "warn" : ""}`.trim();
  }
}

const topicOf = (s) => {
  const of = s.is_relay ? s.relay : s.source;
  return of?.topic ? `topic ${of.topic} of the Kafka cluster ${of.cluster}` : "";
};

const relayColumns = () => [
  column("Publishes", (row) => row.owner ?? "none"),
  column("State", (row) => relayState(row), { tone: (row) => (row.owner && !row.trouble ? "good" : "bad") }),
  column("Alive", (row) => count(row.alive.length), { number: true }),
  column("Lag", (row) => duration(row.lag_seconds), { number: true }),
  column("In flight", (row) => count(row.records_in_flight), { number: true }),
  column("Changes per second", (row) => rate(row.changes_per_second), { number: true }),
  column("Position", (row) => ago(row.position_age_seconds), { number: true }),
  column("Would be lost in", (row) => duration(row.headroom_seconds), { number: true }),
  column("Topic keeps", (row) => duration(row.retention_seconds), { number: true }),
];

const relayState = (row) => row.trouble ?? (row.owner ? "publishing" : "down");

const readerColumns = () => [
  column("Group", (row) => row.group),
  column("Alive", (row) => count(row.alive), { number: true, tone: (row) => (row.alive ? "" : "bad") }),
  column("Broker lag", (row) => count(row.broker_lag), { number: true }),
  column("Would be lost in", (row) => duration(row.headroom_seconds), { number: true }),
];

const publishedColumns = () => [
  column("Collection", (row) => row.name),
  column("Since", (row) => since(row.since, row.now), { number: true }),
];

const partitionColumns = (topic) => [
  column("Partition", (row) => String(row.number)),
  column("Owner", (row) => row.where ?? "none", { tone: (row) => (row.where ? "" : "warn") }),
  column("Term", (row) => count(row.term), { number: true }),
  column("Lag", (row) => duration(row.lag_seconds), { number: true }),
  topic
    ? column("Records to read", (row) => count(row.broker_lag), { number: true })
    : column("Changes behind", (row) => count(row.lag_changes), { number: true }),
  column("Position", (row) => ago(row.position_age_seconds), { number: true }),
  column("Would be lost in", (row) => duration(row.headroom_seconds), { number: true }),
];

const memberColumns = () => [
  column("Member", (row) => `${row.host}, pid ${row.pid}`),
  column("State", (row) => memberState(row), { tone: (row) => (row.alive ? "good" : "bad") }),
  column("Partitions", (row) => ranges(row.partitions) || "none: standby"),
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

const claimColumns = () => [
  column("Process", (row) => `${row.host ?? DASH}, pid ${row.pid ?? DASH}`, { hint: (row) => row.process }),
  column("State", (row) => claimState(row), { tone: (row) => (row.alive ? "good" : row.fenced_at ? "" : "bad") }),
  column("Open", (row) => count(row.open), { number: true }),
  column("Released", (row) => count(row.released), { number: true }),
  column("Waiting", (row) => count(row.waiting), { number: true, tone: (row) => (row.waiting ? "warn" : "quiet") }),
  column("Since", (row) => since(row.started_at, row.now), { number: true }),
  column("Last beat", (row) => since(row.beat_at, row.now), { number: true }),
];

// The words of `dispatcher claims list`.
const ENDED_BY = { process: "the process", dispatcher: "a dispatcher", operator: "an operator" };

const claimState = (row) =>
  row.alive ? "alive" : row.fenced_at ? `claims ended by ${ENDED_BY[row.fenced_by] ?? "an unknown program"}` : "silent";

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
