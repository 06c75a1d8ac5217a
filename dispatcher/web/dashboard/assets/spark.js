// A small chart in a row of a table: successful and failed attempts over time, on one scale.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 26;

// The first points of a new receiver fill the chart.
const SHORTEST_SECONDS = 60;

function part(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export class Spark {
  constructor() {
    this.good = part("path", { class: "spark-good" });
    this.bad = part("path", { class: "spark-bad" });
    this.node = part("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.node.append(this.good, this.bad);
  }

  // Draws the points of the last seconds before `now`.
  show(points, now, longest) {
    const seconds = Math.min(longest, Math.max(SHORTEST_SECONDS, now - (points[0]?.at ?? now)));
    const failed = (point) => point.failed + point.retried;
    const most = Math.max(...points.map((point) => point.delivered + failed(point)), 0);
    const area = (value) => {
      if (!most) return "";
      const at = (point) => (WIDTH * (1 - (now - point.at) / seconds)).toFixed(1);
      // A failure among many successes is still visible.
      const top = (point) => (HEIGHT - (value(point) ? Math.max(2, (value(point) / most) * (HEIGHT - 2)) : 0)).toFixed(1);
      const line = points.map((point) => `${at(point)},${top(point)}`).join(" L");
      return `M${at(points[0])},${HEIGHT} L${line} L${at(points.at(-1))},${HEIGHT} Z`;
    };
    this.good.setAttribute("d", area((point) => point.delivered + failed(point)));
    this.bad.setAttribute("d", area(failed));
  }
}
