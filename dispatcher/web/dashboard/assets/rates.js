// Rates and percentiles from counters. A counter grows from the start of a process. Each member reports its
// counters every few seconds. A rate is the difference of two reports, divided by the seconds between them. The
// rate of a group is the sum over its members.

// Seconds over which rates are averaged, at least.
const WINDOW = 10;

// Counters that another version of the dispatcher may have written.
const number = (value) => (typeof value === "number" ? value : 0);

// The last reports of one set of counters: just as many as the window needs.
export class Window {
  constructor() {
    this.reports = [];
  }

  add(at, counters) {
    const { reports } = this;
    if (!reports.length || at > reports.at(-1).at) reports.push({ at, counters });
    while (reports.length > 2 && reports[1].at <= at - WINDOW) reports.shift();
  }

  get seconds() {
    return this.reports.at(-1).at - this.reports[0].at;
  }

  // If a counter falls, it has started again from zero.
  grown(value) {
    return Math.max(0, value(this.reports.at(-1).counters) - value(this.reports[0].counters));
  }

  rate(name) {
    return this.seconds > 0 ? this.grown((counters) => number(counters[name])) / this.seconds : 0;
  }

  // The average of the values that were added to a sum.
  mean(sum, count) {
    const calls = this.grown((counters) => number(counters[count]));
    return calls > 0 ? this.grown((counters) => number(counters[sum])) / calls : null;
  }
}

// The windows of several sets of counters, by key. Sets that are gone are forgotten.
export class Windows {
  constructor() {
    this.byKey = new Map();
  }

  // Takes an object for each set: {key: {at, ...counters}}.
  add(sets) {
    this.byKey = new Map(Object.keys(sets).map((key) => [key, this.byKey.get(key) ?? new Window()]));
    for (const [key, counters] of Object.entries(sets)) this.byKey.get(key).add(counters.at, counters);
  }

  get(key) {
    return this.byKey.get(key);
  }

  get all() {
    return [...this.byKey.values()];
  }
}

// The share of attempts that failed; null without attempts.
export function errorRate({ delivered, failed, retried }) {
  const attempts = delivered + failed + retried;
  return attempts > 0 ? (failed + retried) / attempts : null;
}

// A point of the plots from a step of the history: {at, seconds, lag_seconds, read, delivered, ..., latency}.
export function pointOf(step, bounds) {
  const rate = (name) => step[name] / step.seconds;
  return {
    at: step.at,
    read: rate("read"),
    delivered: rate("delivered"),
    failed: rate("failed"),
    retried: rate("retried"),
    lag_seconds: step.lag_seconds,
    p50_seconds: quantile(0.5, step.latency, bounds),
    p99_seconds: quantile(0.99, step.latency, bounds),
  };
}

// The points of a receiver from its counters in each step. The first steps of a new receiver are zero.
export function pointsOf(counters, steps) {
  const rate = (name, number) => counters[name][number] / steps[number].seconds;
  return steps.map(({ at }, number) => ({
    at,
    delivered: rate("delivered", number),
    failed: rate("failed", number),
    retried: rate("retried", number),
  }));
}

export class Rates {
  // The upper bounds of the buckets in which members count latencies.
  constructor(bounds) {
    this.bounds = bounds;
    this.members = new Windows();
  }

  // A point of the plots from a sample: {at, members: {id: {at, read, delivered, ...}}}.
  point(sample) {
    this.members.add(sample.members);
    const rate = (name) => this.members.all.reduce((sum, member) => sum + member.rate(name), 0);
    const latency = this.latency();
    const lags = Object.values(sample.members).map((member) => member.lag_seconds).filter((lag) => typeof lag === "number");
    return {
      at: sample.at,
      read: rate("read"),
      delivered: rate("delivered"),
      failed: rate("failed"),
      retried: rate("retried"),
      lag_seconds: lags.length ? Math.max(...lags) : null,
      p50_seconds: quantile(0.5, latency, this.bounds),
      p99_seconds: quantile(0.99, latency, this.bounds),
      in_flight: Object.values(sample.members).reduce((sum, member) => sum + number(member.in_flight), 0),
    };
  }

  // The latencies of the window, by bucket.
  latency() {
    const length = this.bounds.length + 1;
    const known = (buckets) => Array.isArray(buckets) && buckets.length === length;
    return Array.from({ length }, (_, bucket) =>
      this.members.all.reduce((sum, member) => sum + member.grown(({ latency }) => (known(latency) ? number(latency[bucket]) : 0)), 0),
    );
  }
}

// A percentile of counts by bucket, as Prometheus computes it; null if nothing was counted.
export function quantile(share, counts, bounds) {
  const wanted = share * counts.reduce((sum, count) => sum + count, 0);
  if (!wanted) return null;
  let below = 0;
  for (const [bucket, upper] of bounds.entries()) {
    if (below + counts[bucket] >= wanted) {
      const lower = bucket ? bounds[bucket - 1] : 0;
      return lower + ((upper - lower) * (wanted - below)) / counts[bucket];
    }
    below += counts[bucket];
  }
  return bounds.at(-1); // nothing is known beyond it
}
