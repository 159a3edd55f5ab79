// The picture of what ends: a lane for each kind, a dot for each thing; the table beside it says the same in words.

import { svg } from "./dom.js";
import { KINDS } from "./expiring.js";

const DAY = 86400000;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const LANE = 34;
const TOP = 24;
const LABELS = 190;
const RADIUS = 5;

export function timeline(ends, wide) {
  const width = Math.max(280, Math.min(1240, wide));
  // Beside the lanes where there is room, else above them.
  const beside = width > 640;
  const left = beside ? LABELS : 8;
  const lane = beside ? LANE : LANE + 12;
  const lanes = Object.values(KINDS).filter((kind) => ends.some((each) => each.kind === kind));
  const height = TOP + lanes.length * lane + 6;
  const now = Date.now();
  const x = (time) => left + (Math.min(366, Math.max(0, (time - now) / DAY)) / 366) * (width - left - 12);
  const picture = svg("svg", {
    class: "timeline",
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `What ends within 12 months: ${ends.length} in all, listed in the table below`,
  });
  picture.append(
    ...months(now, x, width, height),
    ...lanes.flatMap((kind, index) => row(kind, ends, TOP + index * lane, { x, left, lane, beside, width })),
  );
  return picture;
}

function months(now, x, width, height) {
  const begin = new Date(now);
  const every = width > 640 ? 1 : 3;
  const ticks = [];
  for (let month = 1; month <= 12; month++) {
    const at = new Date(Date.UTC(begin.getUTCFullYear(), begin.getUTCMonth() + month, 1));
    const place = x(at.getTime());
    ticks.push(svg("line", { class: "axis", x1: place, x2: place, y1: TOP - 6, y2: height }));
    if (month % every === 0 && place < width - 40) {
      const year = at.getUTCMonth() === 0 ? ` ${at.getUTCFullYear()}` : "";
      ticks.push(text(place + 3, 12, MONTHS[at.getUTCMonth()] + year));
    }
  }
  return [...ticks, svg("line", { class: "axis now", x1: x(now), x2: x(now), y1: TOP - 6, y2: height })];
}

function text(x, y, words) {
  const made = svg("text", { x, y });
  made.textContent = words;
  return made;
}

function row(kind, ends, top, { x, left, lane, beside, width }) {
  const middle = top + lane - LANE / 2;
  const label = beside ? text(0, middle + 4, kind.name) : text(left, top + 14, kind.name);
  const line = svg("line", { class: "axis", x1: left, x2: width, y1: middle, y2: middle });
  const columns = new Map();
  const dots = ends
    .filter((each) => each.kind === kind)
    .map((each) => {
      const time = new Date(each.at).getTime();
      const place = x(time);
      // What ends together stands one above the other, as far as the lane is high.
      const column = Math.round(place / (2 * RADIUS));
      const before = columns.get(column) ?? 0;
      columns.set(column, before + 1);
      const shift = [0, -8, 8][before % 3];
      const days = (time - Date.now()) / DAY;
      const dot = svg("circle", {
        class: `dot ${days < kind.soon ? "soon" : days < kind.near ? "near" : ""}`,
        cx: place,
        cy: middle + shift,
        r: RADIUS,
      });
      const title = svg("title");
      title.textContent = `${each.text}: ${String(each.at).slice(0, 10)}`;
      dot.append(title);
      return dot;
    });
  return [label, line, ...dots];
}
