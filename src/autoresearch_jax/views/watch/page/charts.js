"use strict";
// Charts in SVG. Every text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const MARKS = {  // as paths around a point: the shapes tell as much as the colours; the last lie on top
  discard: "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
  beyond: "m0-3.4l3.6 6.4h-7.2z",
  crash: "m-3.4-3.4l6.8 6.8m-6.8 0l6.8-6.8",
  keep: "m-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0",
};
const IN_A_PATH = 100;  // marks
const SPARK = [240, 58];  // pixels, as page.css has it
const NEAR = 30;  // pixels from a mark that still mean it
const NUMBERED = 14;  // kept experiments with their number under them, at most

/** An element of SVG with attributes and children. */
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

/** The marks of a kind: a few paths of many marks, so that a new one draws few others anew. */
class Layer {
  constructor(kind, size) {
    this.kind = kind;
    this.size = size;
    this.element = draw("g", {transform: `scale(${size})`});
    this.marks = [];  // of the last path, or yet to be drawn
  }

  add(x, y) {
    this.marks.push(`M${(x / this.size).toFixed(1)} ${(y / this.size).toFixed(1)}${MARKS[this.kind]}`);
  }

  /** Shows what was added. */
  draw() {
    while (this.marks.length) {
      this.path ??= this.element.appendChild(draw("path", {class: `marks ${this.kind}`}));
      this.path.setAttribute("d", this.marks.slice(0, IN_A_PATH).join(""));
      if (this.marks.length < IN_A_PATH) break;
      this.marks.splice(0, IN_A_PATH);
      this.path = null;
    }
  }
}

/** Round numbers from `low` to `high`, about `count` of them. */
function ticks(low, high, count, whole = false) {
  const rough = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = power * ([1, 2, 2.5, 5, 10].find((one) => one * power >= rough) || 10);
  if (whole) step = Math.max(1, Math.ceil(step));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return {step, at: found};
}

/** How many digits after the point tell such steps apart. */
function digits(step) {
  return Math.min(6, Math.max(0, Math.ceil(-Math.log10(step) + (String(step).includes("25") ? 0.4 : 0) - 1e-9)));
}

/** val_bpb over experiments or time: the staircase of the best, and every experiment as a mark. */
class Staircase {
  /** `onPick(point)` is called with what was clicked or tapped. */
  constructor(place, onPick) {
    this.place = place;
    this.points = [];
    this.by = "n";
    this.noise = null;
    this.running = 0;  // so many: they stand at the right of what is decided
    this.chosen = null;
    this.marks = [];
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    place.addEventListener("pointermove", (event) => this.hover(event));
    place.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    place.addEventListener("click", (event) => {
      const point = this.near(event);
      if (point) onPick(point);
    });
    new ResizeObserver(() => this.layout()).observe(place);
  }

  /** Draws all anew. */
  layout() {
    this.width = this.place.clientWidth;
    this.height = this.place.clientHeight;
    if (!this.width) return;
    this.setScales();
    this.svg = draw("svg", {"aria-hidden": "true"});
    this.under = draw("g");
    this.layers = Object.fromEntries(Object.keys(MARKS).map((kind) => [kind, new Layer(kind, this.size)]));
    this.pending = draw("path", {class: "pending"});
    this.over = draw("g");
    this.drawAxes();
    this.svg.append(this.under, ...Object.values(this.layers).map((layer) => layer.element), this.pending, this.over);
    this.marks = [];
    this.drawMarks(this.points);
    this.drawStairs();
    this.drawPending();
    this.place.replaceChildren(this.svg, this.tip);
  }

  /** Takes in points that were appended to `points`; draws all anew only where it must. */
  add(points) {
    if (!this.svg || !points.every((point) => this.fits(point)) || this.isLoose()) {
      this.layout();
      return;
    }
    this.drawMarks(points);
    if (points.some(({status}) => status === "keep")) this.drawStairs();
    this.drawPending();
  }

  fits(point) {
    const value = this.value(point);
    return value === null || value <= this.right;
  }

  /** Whether the axes are not about those that the points want; a little does not move them all. */
  isLoose() {
    const [low, high] = limits(this.points), range = this.high - this.low;
    return low < this.low - 0.05 * range || low > this.low + 0.3 * range
      || high > this.high + 0.05 * range || high < this.high - 0.4 * range;
  }

  /** Where a point stands on the horizontal axis, or null. */
  value(point) {
    if (this.by === "n") return point.place;
    return point.finished === undefined ? null : (point.finished - this.first) / 3600;
  }

  setScales() {
    const timed = this.points.filter((point) => point.finished !== undefined);
    this.first = timed.length ? timed[0].finished : 0;
    const values = this.points.map((point) => this.value(point)).filter((value) => value !== null);
    const last = values.length ? values[values.length - 1] : 1;
    // Room to the right, so that not every experiment moves all others.
    const room = this.by === "n" ? Math.max(1, this.running, Math.ceil(last * 0.04)) : last * 0.04 || 0.01;
    this.left = this.by === "n" ? -0.5 : 0;
    this.right = last + room;
    [this.low, this.high] = limits(this.points);
    this.inner = {left: 52, right: this.width - 10, top: 14, bottom: this.height - 34};
    const crowd = values.length * 8 / (this.inner.right - this.inner.left);  // marks on a mark's width
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

  drawAxes() {
    const {left, right, bottom} = this.inner;
    const rows = ticks(this.low, this.high, Math.max(3, this.height / 60));
    for (const value of rows.at) {
      const y = this.y(value);
      this.under.append(draw("line", {class: "grid", x1: left, x2: right, y1: y, y2: y}),
        draw("text", {x: left - 8, y: y + 4, "text-anchor": "end"}, value.toFixed(digits(rows.step))));
    }
    const columns = ticks(Math.max(0, this.left), this.right, Math.max(3, this.width / 90), this.by === "n");
    const unit = this.by === "n" ? 0 : digits(columns.step);
    for (const value of columns.at) {
      this.under.append(draw("text", {x: this.x(value), y: bottom + 17, "text-anchor": "middle"}, value.toFixed(unit)));
    }
    const words = this.by === "n" ? "experiments decided" : "hours since the first result";
    this.under.append(draw("text", {x: (left + right) / 2, y: bottom + 32, "text-anchor": "middle"}, words));
  }

  drawMarks(points) {
    for (const point of points) this.mark(point);
    for (const layer of Object.values(this.layers)) layer.draw();
  }

  mark(point) {
    const value = this.value(point);
    if (value === null) return;
    const kind = kindOf(point);
    const shown = kind === "discard" && point.val_bpb > this.high ? "beyond" : kind;
    const y = shown === "beyond" || kind === "crash" ? this.inner.top : this.y(point.val_bpb);
    const x = this.x(value);
    this.layers[shown].add(x, y);
    this.marks.push({x, y, point});
  }

  /** The staircase, the noise around it, numbers, and the chosen one. */
  drawStairs() {
    this.over.replaceChildren();
    this.band?.remove();
    this.stairs?.remove();
    const kept = this.marks.filter(({point}) => point.status === "keep" && point.val_bpb !== undefined);
    const end = this.inner.right;
    let path = "", best = Infinity;
    const steps = [];
    for (const {x, point} of kept) {
      best = Math.min(best, point.val_bpb);
      path += path ? `H${x.toFixed(1)}V${this.y(best).toFixed(1)}` : `M${x.toFixed(1)} ${this.y(best).toFixed(1)}`;
      steps.push([x, best]);
    }
    this.stairs = draw("path", {class: "stairs", d: path ? `${path}H${end}` : ""});
    this.band = draw("path", {class: "noise", d: this.noise === null ? "" : this.bandPath(steps, end)});
    this.under.append(this.band, this.stairs);
    for (const {x, point} of this.numbered()) {
      this.over.append(draw("text", {class: "number", x, y: this.y(point.val_bpb) + 20}, String(point.n)));
    }
    this.drawChosen();
  }

  bandPath(steps, end) {
    const edge = (sign) => steps.flatMap(([x, best], i) => {
      const y = this.y(best + sign * this.noise).toFixed(1);
      return [`${x.toFixed(1)} ${y}`, `${(steps[i + 1]?.[0] ?? end).toFixed(1)} ${y}`];
    });
    return steps.length ? `M${[...edge(1), ...edge(-1).reverse()].join("L")}Z` : "";
  }

  /** The marks of the largest steps, those left out whose number would stand on another's. */
  numbered() {
    const apart = [];
    const large = this.marks.filter(({point}) => improved(point)).sort((a, b) => b.point.gain - a.point.gain);
    for (const one of large.slice(0, NUMBERED)) {
      if (apart.every((other) => Math.abs(one.x - other.x) > 24 || Math.abs(one.y - other.y) > 15)) apart.push(one);
    }
    return apart;
  }

  drawPending() {
    const {top, bottom} = this.inner, count = this.by === "n" ? this.running : 0;
    const places = Array.from({length: count}, (_, i) => this.points.length + i).filter((one) => one <= this.right);
    this.pending.setAttribute("d", places.map((one) => `M${this.x(one).toFixed(1)} ${top}V${bottom}`).join(""));
  }

  drawChosen() {
    this.ring?.remove();
    const at = this.marks.find(({point}) => point.n === this.chosen);
    if (!at) return;
    this.ring = draw("circle", {class: "chosen", cx: at.x, cy: at.y, r: 9});
    this.over.append(this.ring);
  }

  choose(n) {
    this.chosen = n;
    if (this.svg) this.drawChosen();
  }

  near(event) {
    const box = this.place.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    let found = null, least = NEAR;
    for (const one of this.marks) {
      const far = Math.hypot(one.x - x, one.y - y);
      if (far < least) [found, least] = [one, far];
    }
    this.found = found;
    return found && found.point;
  }

  hover(event) {
    const point = event.pointerType === "touch" ? null : this.near(event);
    this.tip.hidden = !point;
    if (!point) return;
    const head = document.createElement("b");
    head.textContent = `${point.n} ${point.status}  ${point.val_bpb === undefined ? "" : point.val_bpb.toFixed(6)}`;
    this.tip.replaceChildren(head, point.description || "");
    const {x, y} = this.found;
    this.tip.style.left = `${Math.min(x + 12, Math.max(0, this.width - this.tip.offsetWidth))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(y + 12, this.height - this.tip.offsetHeight))}px`;
  }
}

/** "keep", "discard" or "crash": how a point is drawn. Forks have other words, too. */
function kindOf(point) {
  if (point.val_bpb === undefined) return "crash";
  return point.status === "keep" ? "keep" : "discard";
}

function improved(point) {
  return point.status === "keep" && point.gain !== undefined;
}

/** The scores between which the steps of the best fill the picture: a wild failure does not flatten them. */
function limits(points) {
  let first, best = Infinity, most = -Infinity;
  for (const {val_bpb: bpb} of points) {
    if (bpb === undefined) continue;
    first ??= bpb;
    best = Math.min(best, bpb);
    most = Math.max(most, bpb);
  }
  if (first === undefined) return [0, 1];
  const reach = Math.max(first - best, 0.25 * (Math.min(most, 1.3 * first) - best), 1e-4 * first);
  let high = first;
  for (const {val_bpb: bpb} of points) if (bpb <= first + 0.5 * reach) high = Math.max(high, bpb);
  return [best - 0.12 * reach, high + 0.15 * reach];
}

/** Training loss over the budget: one's own beside that of the experiment it was proposed against. */
function drawLoss(place, own, other, names) {
  const small = !names;  // then its size is known, and nothing is laid out to learn it
  const [width, height] = small ? SPARK : [place.clientWidth, place.clientHeight];
  if (!width || !own.length) { place.replaceChildren(); return; }
  const inner = small ? {left: 0, right: width - 4, top: 4, bottom: height - 4}
    : {left: 44, right: width - 8, top: 8, bottom: height - 30};
  // The fall of the first steps would flatten all that follows.
  const shown = [...own, ...other].filter(([percent]) => percent >= 10);
  const losses = (shown.length > 3 ? shown : [...own, ...other]).map(([, loss]) => loss);
  const low = Math.min(...losses), high = Math.max(...losses) || 1;
  const room = 0.06 * (high - low) || 0.01;
  const x = (percent) => inner.left + (inner.right - inner.left) * Math.min(100, percent) / 100;
  const y = (loss) => inner.bottom - (inner.bottom - inner.top) * (loss - low + room) / (high - low + 2 * room);
  const line = (curve) => curve.map(([percent, loss], i) =>
    `${i ? "L" : "M"}${x(percent).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  const svg = draw("svg", {"aria-hidden": "true"});
  if (!small) {
    const rows = ticks(low, high, 4);
    for (const value of rows.at) {
      svg.append(draw("line", {class: "grid", x1: inner.left, x2: inner.right, y1: y(value), y2: y(value)}),
        draw("text", {x: inner.left - 7, y: y(value) + 4, "text-anchor": "end"}, value.toFixed(Math.max(1, digits(rows.step)))));
    }
    for (const percent of [0, 25, 50, 75, 100]) {
      svg.append(draw("text", {x: x(percent), y: inner.bottom + 15, "text-anchor": percent === 100 ? "end" : "middle"}, `${percent}%`));
    }
    svg.append(draw("text", {x: inner.right - 4, y: inner.top + 6, "text-anchor": "end", class: "own-name"}, names[0]),
      draw("text", {x: inner.right - 4, y: inner.top + 21, "text-anchor": "end"}, other.length ? names[1] : ""));
  }
  const pane = {x: 0, y: inner.top, width, height: inner.bottom - inner.top};
  svg.append(draw("svg", {class: "pane", ...pane, viewBox: `0 ${inner.top} ${width} ${pane.height}`},
    draw("path", {class: "other", d: line(other)}), draw("path", {class: "own", d: line(own)})));
  place.replaceChildren(svg);
}
