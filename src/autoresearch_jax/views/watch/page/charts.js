"use strict";
// Charts in SVG. Every text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const MARKS = {  // paths around a point; shapes differ as well as colours; the last kind lies on top
  discard: "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
  beyond: "m0-3.4l3.6 6.4h-7.2z",
  crash: "m-3.4-3.4l6.8 6.8m-6.8 0l6.8-6.8",
  keep: "m-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0",
};
const SPARK = [240, 58];  // pixels, as in page.css
const NEAR = 30;  // pixels from a mark within which a click means it
const SPOKES = 300;  // lines to what was based on an experiment, at most
const NUMBERED = 14;  // kept experiments with their number under them, at most

/** An SVG element with attributes and children. */
function draw(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A mark by itself, for a legend. */
function sample(kind) {
  return draw("svg", {viewBox: "-6 -6 12 12", "aria-hidden": "true"},
    draw("path", {class: kind, d: `M0 0${MARKS[kind]}`}));
}

/** About `count` round numbers from `low` to `high`, each with its label. */
function ticks(low, high, count, whole = false) {
  const rough = (high - low) / Math.max(1, count) || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(whole ? 1 : 0, power * ([1, 2, 5].find((one) => one * power >= rough) || 10));
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) {
    found.push([i * step, (i * step).toFixed(digits)]);
  }
  return found;
}

/** Labelled grid lines from `left` to `right` at some heights. */
function grid(rows, left, right, y) {
  return rows.flatMap(([value, label]) => [
    draw("line", {class: "grid", x1: left, x2: right, y1: y(value), y2: y(value)}),
    draw("text", {x: left - 8, y: y(value) + 4, "text-anchor": "end"}, label)]);
}

/** A path through points. */
const through = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** val_bpb over experiments or time: the best so far as a staircase, and every experiment as a mark. */
class Staircase {
  /** `onPick(point)` is called with what was clicked or tapped. */
  constructor(place, onPick) {
    this.place = place;
    this.points = [];
    this.by = "n";
    this.noise = null;
    this.running = 0;  // how many experiments run: dashed lines at the right stand for them
    this.chosen = null;
    this.marks = [];
    this.tip = make("div", "tip");
    this.tip.hidden = true;
    place.addEventListener("pointermove", (event) => this.hover(event));
    place.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    place.addEventListener("click", (event) => {
      const mark = this.near(event);
      if (mark) onPick(mark.point);
    });
    new ResizeObserver(() => this.layout()).observe(place);
  }

  layout() {
    this.width = this.place.clientWidth;
    this.height = this.place.clientHeight;
    if (!this.width) return;
    this.setScales();
    this.marks = this.points.map((point) => this.mark(point)).filter(Boolean);
    this.places = new Map(this.marks.map((mark) => [mark.point.n, mark]));
    this.svg = draw("svg", {"aria-hidden": "true"}, ...this.axes(), ...this.stairs(), ...this.symbols(), this.pending(), ...this.numbers());
    this.place.replaceChildren(this.svg, this.tip);
    this.choose(this.chosen);
  }

  /** Where a point stands on the horizontal axis, or null. */
  value(point) {
    if (this.by === "n") return point.place;
    return known(point.finished) ? (point.finished - this.first) / 3600 : null;
  }

  setScales() {
    this.first = this.points.find((point) => known(point.finished))?.finished ?? 0;
    const last = this.points.map((point) => this.value(point)).filter(known).at(-1) ?? 1;
    this.left = this.by === "n" ? -0.5 : 0;
    this.right = last + (this.by === "n" ? Math.max(1, this.running) : 0.04 * last || 0.01);
    [this.low, this.high] = limits(this.points);
    this.inner = {left: 52, right: this.width - 10, top: 14, bottom: this.height - 34};
    const crowd = this.points.length * 8 / (this.inner.right - this.inner.left);  // marks within the width of one
    this.size = Math.min(1, Math.max(0.6, crowd ** -0.3)).toFixed(2);
  }

  x(value) {
    const {left, right} = this.inner;
    return left + 8 + (right - left - 8) * (value - this.left) / (this.right - this.left);
  }

  y(score) {
    const {top, bottom} = this.inner;
    return bottom - (bottom - top) * (score - this.low) / (this.high - this.low);
  }

  axes() {
    const {left, right, bottom} = this.inner, byNumber = this.by === "n";
    const columns = ticks(Math.max(0, this.left), this.right, Math.max(3, this.width / 90), byNumber)
      .map(([value, label]) => [this.x(value), 17, label]);
    columns.push([(left + right) / 2, 32, byNumber ? "experiments decided" : "hours since the first result"]);
    return [...grid(ticks(this.low, this.high, Math.max(3, this.height / 60)), left, right, (value) => this.y(value)),
      ...columns.map(([x, below, text]) => draw("text", {x, y: bottom + below, "text-anchor": "middle"}, text))];
  }

  /** Where and how a point is drawn; null for one without a place on the axis. */
  mark(point) {
    const value = this.value(point);
    if (value === null) return null;
    const kind = kindOf(point) === "discard" && point.val_bpb > this.high ? "beyond" : kindOf(point);
    const atTop = kind === "beyond" || kind === "crash";
    return {x: this.x(value), y: atTop ? this.inner.top : this.y(point.val_bpb), kind, point};
  }

  /** The marks, as one path for each kind. */
  symbols() {
    const paths = Object.fromEntries(Object.keys(MARKS).map((kind) => [kind, ""]));
    const tenths = (value) => Math.round(10 * value / this.size) / 10;  // of thousands, toFixed takes most of the time
    for (const {x, y, kind} of this.marks) paths[kind] += `M${tenths(x)} ${tenths(y)}${MARKS[kind]}`;
    return Object.entries(paths).map(([kind, d]) => draw("path", {class: `marks ${kind}`, d, transform: `scale(${this.size})`}));
  }

  /** The best so far, with a band of the noise around it. */
  stairs() {
    let best = Infinity;
    const corners = [];
    for (const {x, point} of this.marks.filter(({kind}) => kind === "keep")) {
      if (corners.length) corners.push([x, best]);
      best = Math.min(best, point.val_bpb);
      corners.push([x, best]);
    }
    if (corners.length) corners.push([this.inner.right, best]);
    const edge = (shift) => corners.map(([x, score]) => [x, this.y(score + shift)]);
    const band = known(this.noise) ? through([...edge(this.noise), ...edge(-this.noise).reverse()]) : "";
    return [draw("path", {class: "noise", d: band && `${band}Z`}), draw("path", {class: "stairs", d: through(edge(0))})];
  }

  /** The numbers of the largest steps, without those that would overprint another. */
  numbers() {
    const large = this.marks.filter(({point}) => point.status === "keep" && known(point.change))
      .sort((a, b) => a.point.change - b.point.change).slice(0, NUMBERED);
    const apart = [];
    for (const one of large) {
      if (apart.every((other) => Math.abs(one.x - other.x) > 24 || Math.abs(one.y - other.y) > 15)) apart.push(one);
    }
    return apart.map(({x, y, point}) => draw("text", {class: "number", x, y: y + 20}, String(point.n)));
  }

  pending() {
    const {top, bottom} = this.inner, count = this.by === "n" ? this.running : 0;
    const lines = Array.from({length: count}, (_, i) => `M${this.x(this.points.length + i).toFixed(1)} ${top}V${bottom}`);
    return draw("path", {class: "pending", d: lines.join("")});
  }

  /** Rings an experiment, with lines to what it was based on, and to what was based on it. */
  choose(n) {
    this.chosen = n;
    this.ring?.remove();
    const {places} = this, at = places?.get(n);
    if (!at) return;
    const chain = ancestors(at.point).map((point) => places.get(point.n)).filter(Boolean);
    const based = this.marks.filter(({point}) => point.base === n).slice(-SPOKES);
    const {of, together = []} = at.point;
    const origins = (together.length ? together : [of]).map((one) => places.get(one)).filter(Boolean);
    const spokes = [...based, ...origins].map(({x, y}) => through([[at.x, at.y], [x, y]])).join("");
    this.ring = this.svg.appendChild(draw("g", {},
      draw("path", {class: "spokes", d: spokes}), draw("path", {class: "chain", d: through([...chain, at].map(({x, y}) => [x, y]))}),
      draw("circle", {class: "chosen", cx: at.x, cy: at.y, r: 9})));
  }

  near(event) {
    const box = this.place.getBoundingClientRect();
    const far = ({x, y}) => Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
    const nearest = this.marks.reduce((best, mark) => (best && far(best) <= far(mark) ? best : mark), null);
    return nearest && far(nearest) < NEAR ? nearest : null;
  }

  hover(event) {
    const mark = event.pointerType === "touch" ? null : this.near(event);
    this.tip.hidden = !mark;
    if (!mark) return;
    const {x, y, point} = mark;
    this.tip.replaceChildren(make("b", "", `${point.n} ${point.status}  ${fixed(point.val_bpb, 6)}`), point.description || "");
    this.tip.style.left = `${Math.min(x + 12, Math.max(0, this.width - this.tip.offsetWidth))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(y + 12, this.height - this.tip.offsetHeight))}px`;
  }
}

/** "keep", "discard" or "crash": how a point is drawn. Forks have other words, too. */
function kindOf(point) {
  if (!known(point.val_bpb)) return "crash";
  return point.status === "keep" ? "keep" : "discard";
}

const FEW = 12;  // scores that are all shown, except those that are a tenth worse than the first

/** The scores between which the steps of the best fill the chart, whatever the failures scored. */
function limits(points) {
  const scores = points.map((point) => point.val_bpb).filter(known);
  if (!scores.length) return [0, 1];
  const first = scores[0], best = Math.min(...scores), worst = Math.max(...scores);
  const reach = Math.max(first - best, 0.25 * (Math.min(worst, 1.3 * first) - best), 1e-3 * first);
  const worse = scores.length < FEW ? 0.1 * first : 0.5 * reach;
  const high = Math.max(...scores.filter((score) => score <= first + worse));
  return [best - 0.12 * reach, high + 0.15 * reach];
}

/** Training losses over the budget. A curve is its class, its name and its points; a spark line is small. */
function drawLoss(place, curves, small = false) {
  const [width, height] = small ? SPARK : [place.clientWidth, place.clientHeight];  // a spark line has no axes
  const shown = curves.filter(([, , points]) => points.length), all = shown.flatMap(([, , points]) => points);
  if (!width || !shown.length) { place.replaceChildren(); return; }
  const left = small ? 0 : 44, right = width - (small ? 4 : 8), top = small ? 4 : 8, bottom = height - (small ? 4 : 30);
  // The fall of the first steps would flatten the rest.
  const late = all.filter(([percent]) => percent >= 10);
  const losses = (late.length > 3 ? late : all).map(([, loss]) => loss);
  const low = Math.min(...losses), high = Math.max(...losses), room = 0.06 * (high - low) || 0.01;
  const x = (percent) => left + (right - left) * Math.min(100, percent) / 100;
  const y = (loss) => bottom - (bottom - top) * (loss - low + room) / (high - low + 2 * room);
  const line = (points) => through(points.map(([percent, loss]) => [x(percent), y(loss)]));
  const text = (at, below, words, more = {}) => draw("text", {x: at, y: below, "text-anchor": "end", ...more}, words);
  const axes = small ? [] : [...grid(ticks(low, high, 4), left, right, y),
    ...[0, 25, 50, 75, 100].map((percent) => text(x(percent), bottom + 15, `${percent}%`, percent < 100 ? {"text-anchor": "middle"} : {})),
    ...shown.map(([kind, name], at) => text(right - 4, top + 6 + 15 * at, name, {class: `curve-name ${kind}`}))];
  const pane = {class: "pane", x: 0, y: top, width, height: bottom - top, viewBox: `0 ${top} ${width} ${bottom - top}`};
  place.replaceChildren(draw("svg", {"aria-hidden": "true"}, ...axes, draw("svg", pane,
    ...shown.toReversed().map(([kind, , points]) => draw("path", {class: `curve ${kind}`, d: line(points)})))));
}

/** The same as a table, for who cannot see the curves. */
function lossTable(curves) {
  const at = (points, percent) => fixed(points.findLast(([one]) => one <= percent)?.[1], 4);
  const cells = (name, words) => words.map((one) => make(name, "", one));
  const rows = [25, 50, 75, 100].map((percent) => make("tr", "", ...cells("th", [`${percent}%`]), ...cells("td", curves.map(([, , points]) => at(points, percent)))));
  return make("table", "sr", make("caption", "", "Training loss by the share of the budget"),
    make("tr", "", ...cells("th", ["budget", ...curves.map(([, name]) => name)])), ...rows);
}
