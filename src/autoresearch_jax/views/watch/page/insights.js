"use strict";
// What each constant and each idea did to the score, over all experiments that changed it alone.

const SHOWN = 12;  // constants with a chart; the table has all

/** Reads and draws it when the person opens it. */
async function showInsights() {
  const place = $("insights-body"), {title} = model;
  if (!$("insights").open) return;
  let found = null;
  try { found = isReport() ? JSON.parse($("insights-data").textContent) : await fetched("insights"); } catch { /* the server is away */ }
  if (!found || model.title !== title) return;
  const {constants, ideas, noise, left_out: left} = found, parts = [];
  const words = "An effect is the score of an experiment minus that of the experiment that it changes; negative is better. "
    + "Only experiments that change one thing alone count. The size is that of a typical effect beyond the noise; the band is where noise alone puts 95% of effects.";
  parts.push(make("p", "note", words, left ? ` The oldest ${count(left)} experiments are left out.` : ""));
  if (!constants.length && !ideas.length) parts.push(make("p", "", "No experiment has changed one thing alone yet."));
  if (constants.length) parts.push(make("h3", "", "Constants"), make("div", "small-charts", ...constants.slice(0, SHOWN).map((one) => constantChart(one, noise))), effectTable("constant", constants));
  if (ideas.length) parts.push(make("h3", "", "Ideas"), effectTable("idea", ideas));
  place.replaceChildren(...parts);
}

const effectWords = ({mean, half}) => (known(mean) ? `${signed(mean, 4)}${known(half) ? ` ± ${half.toFixed(4)}` : ""}` : "crashed");

/** The effects of one constant over its values. */
function constantChart({name, tried, importance}, noise) {
  const [width, height, left, right, top, bottom] = [220, 132, 44, 212, 8, 108];
  const points = tried.filter(({effect}) => known(effect)), values = points.map((one) => one.new);
  const numbers = values.every((value) => typeof value === "number"), kinds = [...new Set(values)];
  const log = numbers && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 8;
  const place = (value) => (!numbers ? kinds.indexOf(value) : log ? Math.log(value) : value);
  const [low, high] = [Math.min(...values.map(place)), Math.max(...values.map(place))], wide = high - low || 1;
  const sizes = points.map(({effect}) => effect), [least, most] = span(sizes, noise);
  const x = (value) => (high === low ? (left + right) / 2 : left + 8 + (right - left - 16) * (place(value) - low) / wide);
  const y = (effect) => bottom - (bottom - top) * (Math.min(most, effect) - least) / (most - least);
  const text = (at, words, anchor) => draw("text", {x: at, y: bottom + 16, "text-anchor": anchor}, words);
  const ends = numbers ? [[Math.min(...values), "start"], [Math.max(...values), "end"]] : [[kinds[0], "start"], [kinds.at(-1), "end"]];
  const reach = 2 * Math.SQRT2 * (noise?.sd || 0);  // two deviations of a difference of two scores
  const band = known(noise?.sd) ? [draw("rect", {class: "noise", x: left, width: right - left, y: y(reach), height: y(-reach) - y(reach)})] : [];
  const marks = ["discard", "keep"].map((kind) => draw("path", {class: kind, d: points.filter(({kept}) => kept === (kind === "keep"))
    .map((one) => `M${x(one.new).toFixed(1)} ${y(one.effect).toFixed(1)}${MARKS.discard}`).join("")}));
  const axes = points.length ? [...grid(ticks(least, most, 3), left, right, y), ...(ends[0][0] === ends[1][0] ? [text((left + right) / 2, short(ends[0][0]), "middle")]
    : ends.map(([value, anchor]) => text(anchor === "start" ? left : right, short(value), anchor)))] : [];
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"}, ...axes, ...band, ...marks);
  return make("figure", "", make("figcaption", "", make("b", "", name), ` ${tried.length} tried${importance ? `, size ${importance.toFixed(4)}` : ""}`), svg);
}

/** From where to where the axis of effects goes: all but those far worse than the others. */
function span(sizes, noise) {
  const order = [...sizes].sort((a, b) => a - b), width = 2 * Math.SQRT2 * (noise?.sd || 0) || 1e-4;
  const least = Math.min(order[0] ?? 0, -width), worst = order.at(-1) ?? 0, usual = order[Math.floor(0.75 * order.length)] ?? 0;
  const most = Math.max(Math.min(worst, 3 * usual), width, -least / 2);
  const room = 0.08 * (most - least);
  return [least - room, most + room];
}

const short = (value) => (typeof value === "number" ? String(Number.isInteger(value) ? value : Number(value.toPrecision(3))) : String(value).slice(0, 14));

/** The effects as a table, which is also what a screen reader has instead of the charts. */
function effectTable(kind, effects) {
  const head = [kind, "tried", "kept", "mean effect", "size", "experiments"].map((name) => Object.assign(make("th", "", name), {scope: "col"}));
  const rows = effects.map((one) => {
    const links = one.tried.slice(-8).flatMap((tried) => [numberLink(tried.n, ""), known(tried.new) ? ` ${short(tried.new)} ` : " ", known(tried.effect) ? signed(tried.effect, 4) : "crash", "; "]);
    const name = Object.assign(make("th", "", one.name), {scope: "row"});
    return make("tr", "", name, make("td", "", String(one.tried.length)), make("td", "", String(one.tried.filter(({kept}) => kept).length)),
      make("td", one.mean < 0 ? "number good" : "number", effectWords(one)), make("td", "", fixed(one.importance, 4)), make("td", "text", ...links.slice(0, -1)));
  });
  const table = make("table", "sides", make("thead", "", make("tr", "", ...head)), make("tbody", "", ...rows));
  return scrolls("scroll", `Effects of each ${kind}`, table);
}

$("insights").addEventListener("toggle", showInsights);
