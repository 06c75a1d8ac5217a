// Numbers and times for people.

// The colours of the words for health.
export const TONES = {
  delivering: "good",
  idle: "good",
  behind: "warn",
  paused: "warn",
  blocked: "bad",
  failing: "bad",
  down: "bad",
};

export const DASH = "–";

export function count(value) {
  return value === null || value === undefined ? DASH : Math.round(value).toLocaleString("en");
}

// A count is a lower bound if counting all documents takes too long.
export function orMore(state, figure) {
  return state.at_least.includes(figure) ? "or more" : "";
}

export function rate(value) {
  if (value === null || value === undefined) return DASH;
  if (value === 0) return "0";
  if (value < 0.1) return "< 0.1";
  return value < 100 ? String(Number(value.toFixed(1))) : count(value);
}

export function percent(share) {
  if (share === null || share === undefined) return DASH;
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${Number((100 * share).toFixed(1))} %`;
}

const UNITS = [
  [86400, "d"],
  [3600, "h"],
  [60, "min"],
];

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds === 0) return "0 s";
  if (seconds < 0.9995) return `${seconds < 0.01 ? (seconds * 1000).toFixed(1) : Math.round(seconds * 1000)} ms`;
  for (const [size, name] of UNITS) {
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${name}`;
  }
  return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}

export function ago(seconds) {
  return seconds === null || seconds === undefined ? DASH : `${duration(Math.max(0, seconds))} ago`;
}

// The time since a moment, by the clock of the server.
export function since(text, now) {
  return text ? ago((Date.parse(now) - Date.parse(text)) / 1000) : DASH;
}

export function moment(text) {
  return text ? new Date(text).toLocaleString() : DASH;
}

export function bytes(size) {
  if (size < 1000) return `${size} bytes`;
  return size < 1e6 ? `${(size / 1000).toFixed(1)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

// Numbers in ascending order, as in "0, 2 to 5".
export function ranges(numbers) {
  const runs = [];
  for (const number of numbers) {
    const last = runs.at(-1);
    if (last && last.at(-1) === number - 1) last.push(number);
    else runs.push([number]);
  }
  return runs.map((run) => (run.length > 2 ? `${run[0]} to ${run.at(-1)}` : run.join(", "))).join(", ");
}
