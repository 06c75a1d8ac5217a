// Points of the last six hours: all points of the last 15 minutes, and one point a minute of the time before.

// The dispatcher keeps its history for the same time, in steps of the same length.
const KEPT_SECONDS = 6 * 3600;
const FRESH_SECONDS = 900;
const STEP_SECONDS = 60;

export class Series {
  // Takes points from the history, the oldest first. A point has a time `at`, in seconds since 1970.
  constructor(points = []) {
    this.old = points;
    this.fresh = [];
  }

  get last() {
    return this.fresh.at(-1) ?? this.old.at(-1);
  }

  add(point) {
    if (this.last && point.at <= this.last.at) return;
    this.fresh.push(point);
    while (this.fresh[0].at < point.at - FRESH_SECONDS) {
      const first = this.fresh.shift();
      if (!this.old.length || first.at >= this.old.at(-1).at + STEP_SECONDS) this.old.push(first);
    }
    while (this.old.length && this.old[0].at < point.at - KEPT_SECONDS) this.old.shift();
  }

  // The points of the last seconds before the last point.
  since(seconds) {
    const first = this.last?.at - seconds;
    return [...this.old, ...this.fresh].filter((point) => point.at >= first);
  }
}

// The series of several receivers, by key. Receivers that are gone are forgotten.
export class ManySeries {
  constructor(history = {}) {
    this.byKey = new Map(Object.entries(history).map(([key, points]) => [key, new Series(points)]));
  }

  // Takes a point for each receiver.
  add(points) {
    for (const key of this.byKey.keys()) if (!(key in points)) this.byKey.delete(key);
    for (const [key, point] of Object.entries(points)) {
      if (!this.byKey.has(key)) this.byKey.set(key, new Series());
      this.byKey.get(key).add(point);
    }
  }

  since(key, seconds) {
    return this.byKey.get(key)?.since(seconds) ?? [];
  }
}
