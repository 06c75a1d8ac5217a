// Plots over the same time, drawn by uPlot: three of the group, and two of one receiver.

import { byId, write } from "./dom.js";
import { duration, percent, rate } from "./format.js";
import { errorRate } from "./rates.js";
import { Series } from "./series.js";

const HEIGHT = 170;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function series(label, variable, format, fill = false) {
  return {
    label,
    stroke: () => colour(variable),
    fill: fill ? () => `${colour(variable)}22` : undefined,
    width: 1.75,
    points: { show: false },
    // The value under the cursor, or else the newest value.
    value: (plot, value, number, at) => format(at === null || at === undefined ? plot.data[number].at(-1) : value),
  };
}

function clock(seconds, step) {
  const time = new Date(seconds * 1000).toTimeString();
  return step < 60 ? time.slice(0, 8) : time.slice(0, 5);
}

function axis(format) {
  const line = { stroke: () => colour("--line"), width: 1 };
  const look = { stroke: () => colour("--quiet"), grid: line, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return [
    { ...look, space: 70, size: 30, values: (plot, ticks, axis, space, step) => ticks.map((tick) => clock(tick, step)) },
    { ...look, size: 58, values: (_, ticks) => ticks.map(format) },
  ];
}

class Plot {
  constructor(id, lines, format) {
    this.place = byId(id);
    this.lines = lines;
    this.data = [[], ...lines.map(() => [])];
    const options = {
      width: this.width,
      height: HEIGHT,
      padding: [8, 24, 0, 0],
      cursor: { drag: { x: false, y: false }, sync: { key: "plots" } },
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: axis(format),
      series: [{ label: "at" }, ...lines.map((line, number) => series(line.label, line.colour, format, number === 0))],
    };
    this.plot = new window.uPlot(options, this.data, this.place);
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  get width() {
    return Math.max(200, this.place.clientWidth);
  }

  resize() {
    if (this.plot.width !== this.width) this.plot.setSize({ width: this.width, height: HEIGHT });
  }

  show(points) {
    this.data = [points.map((point) => point.at), ...this.lines.map((line) => points.map((point) => point[line.field]))];
    this.plot.setData(this.data);
  }
}

const READ = [{ label: "changes", field: "read", colour: "--plot-1" }];
const DELIVERED = [
  { label: "delivered", field: "delivered", colour: "--plot-1" },
  { label: "retried", field: "retried", colour: "--plot-2" },
  { label: "given up", field: "failed", colour: "--plot-3" },
];
const LATENCY = [
  { label: "median", field: "p50_seconds", colour: "--plot-1" },
  { label: "p99", field: "p99_seconds", colour: "--plot-2" },
];

// The seconds that the user has chosen.
export const range = () => Number(byId("range").value);

export class Plots {
  // A relay reads changes, and delivers none.
  constructor(isRelay) {
    this.series = new Series();
    byId("latency-section").hidden = isRelay;
    this.all = [
      new Plot("plot-throughput", isRelay ? READ : DELIVERED, rate),
      new Plot("plot-lag", [{ label: "lag", field: "lag_seconds", colour: "--plot-1" }], duration),
    ];
    if (!isRelay) this.all.push(new Plot("plot-latency", LATENCY, duration));
    byId("range").addEventListener("change", () => this.draw());
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  begin(points) {
    this.series = new Series(points);
  }

  add(point) {
    this.series.add(point);
    this.draw();
  }

  draw() {
    const points = this.series.since(range());
    for (const plot of this.all) plot.show(points);
  }
}

const ERRORS = [{ label: "failed attempts", field: "error_rate", colour: "--plot-3" }];

// The plots of the receiver whose chart is open.
export class ReceiverPlots {
  constructor() {
    this.card = byId("receiver-chart");
    this.key = null;
    this.all = null;
    byId("close-chart").addEventListener("click", () => this.close());
  }

  close() {
    this.key = null;
    this.card.hidden = true;
  }

  // Opens the chart of a receiver, or closes it if it is open.
  toggle(row) {
    if (this.key === row.key) return this.close();
    this.key = row.key;
    this.card.hidden = false;
    write(byId("chart-receiver"), row.name);
    write(byId("chart-signal"), row.signal);
    this.all ??= [new Plot("plot-receiver", DELIVERED, rate), new Plot("plot-errors", ERRORS, percent)];
    this.card.scrollIntoView({ block: "nearest" });
  }

  draw(many) {
    if (this.key === null) return;
    const points = many.since(this.key, range());
    for (const plot of this.all) plot.show(points.map((point) => ({ ...point, error_rate: errorRate(point) })));
  }
}
