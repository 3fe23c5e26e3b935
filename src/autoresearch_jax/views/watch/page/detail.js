"use strict";
// Words and elements, and one experiment in full. Every text goes in as text, never as markup.

const WORDS = {keep: "kept", discard: "discarded", crash: "crashed"};

const $ = (id) => document.getElementById(id);

/** An element with a class and children; texts stay texts. */
function make(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Text as it was printed, in a box that scrolls. */
const block = (text) => Object.assign(make("pre", "", text), {tabIndex: 0});

/** A box that scrolls, and so takes the focus. */
const scrolls = (className, label, child) => Object.assign(make("div", className, child), {tabIndex: 0, role: "region", ariaLabel: label});

const isReport = () => document.body.dataset.report !== undefined;
const known = (value) => value !== null && value !== undefined;
const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1).replace(/\.$/, "")}.`;
const minus = (text) => text.replace(/-(?=[\d.])/g, "−");
// Numbers as text; "" if they are not known.
const fixed = (value, digits, unit = "") => (known(value) ? `${value.toFixed(digits)}${unit}` : "");
const count = (value) => (known(value) ? Math.round(value).toLocaleString("en") : "");
const signed = (value, digits) => minus(value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "exceptZero"}));
/** The change of the score: minus is better. */
const change = (difference) => (known(difference) ? signed(difference, 6) : "");

function duration(seconds) {
  if (!known(seconds)) return "";
  if (seconds >= 3600) return `${(seconds / 3600).toFixed(1)} h`;
  return seconds >= 60 ? `${(seconds / 60).toFixed(1)} min` : `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

/** Fills a list with terms and their values; a term without a value is left out. */
function terms(place, pairs) {
  place.replaceChildren(...pairs.filter(([, value]) => known(value) && value !== "").map(([name, value, className]) =>
    make("div", className, make("dt", "", name), make("dd", "", ...[value].flat()))));
}

/** A link to an experiment, or null. */
function numberLink(n, words = "experiment ") {
  if (!known(n)) return null;
  const link = make("a", "", `${words}${n}`);
  link.href = `#${n}`;
  return link;
}

// ----------------------------------------------------------------------------- one experiment

function showDetail(found) {
  const kind = kindOf(found), status = known(found.status) ? WORDS[found.status] || found.status : "undecided";
  const title = make("h2", "", sample(known(found.status) ? kind : "discard"), ` ${found.n} `, make("span", "status", status));
  const effect = make("dl", "effect");
  terms(effect, [
    ["val_bpb", fixed(found.val_bpb, 6) || "none"],
    ["expected", minus(found.expected || "")],
    [found.expected ? "became" : "change", change(found.change), found.change < 0 ? "better" : ""],
    ["memory", fixed(found.memory_gb, 2, " GiB")],
    ["cost", cost(found.spent)],
    ["against", numberLink(found.base)],
    ["carries over", found.together?.length ? found.together.join(", ") : numberLink(found.of)],
    ["excursion from", numberLink(found.excursion)],
    ["near misses", (found.combines || []).join(", ")],
    ["takes out", (found.without || []).join(", ")],
  ]);
  const parts = [make("label", "pick", picker(found.n), " compare"), title, make("p", "words", found.description || "")];
  if (found.reason) parts.push(make("p", "reason", found.reason));
  if (found.lessons?.length) parts.push(make("ul", "unused", ...found.lessons.map((text) => make("li", "", `Lesson: ${text}`))));
  if (found.unused?.length) parts.push(make("ul", "unused", ...found.unused.map(unusedAnswer)));
  if (found.verdict) parts.push(make("p", "note", sentence(found.verdict)));
  if (found.note) parts.push(make("p", "reason", `Note: ${found.note}`));
  parts.push(effect, ...phases(found.phases || {}), facts(found));
  const loss = make("figure", "loss"), curves = [["own", `${found.n}`, found.curve || []], ["other", `${found.base}, the best before`, found.base_curve || []]];
  if (found.curve?.length) parts.push(section("loss", "Training loss", lossWords(found), loss, lossTable(curves.filter(([, , points]) => points.length))));
  if (found.diff) parts.push(section("diff", "train.py", diffWords(found.diff), ...diff(found.diff)));
  const point = numbered.get(found.n);
  if (point && model.points.some((one) => known(one.base))) parts.push(section("lineage", "Lineage", lineageWords(point), ...lineage(point)));
  if (known(found.ask) && !isReport()) parts.push(answerOf(found.ask));
  if (found.log) parts.push(section("log", "Log", "its last lines", block(found.log)));
  if (found.prompt) parts.push(section("prompt", "Prompt", `${count(found.prompt.length)} characters`, block(found.prompt)));
  if (found.numbers) parts.push(section("numbers", "Numbers", "and what they rest on", numbers({...found.numbers, ...found.facts, commit: found.commit})));
  $("detail").replaceChildren(...parts);
  const sketch = () => drawLoss(loss, curves);
  loss.parentElement?.addEventListener("toggle", sketch);
  sketch();
  view.sketch = sketch;
  document.dispatchEvent(new CustomEvent("detail", {detail: found}));
}

/** A link to what an agent printed, or null. */
function transcript(ask) {
  if (isReport() || !known(ask)) return null;
  const link = make("a", "", "transcript");
  link.href = address(`answer/${ask}`);
  return link;
}

/** An answer that did not become an experiment, with its reason and its transcript. */
const unusedAnswer = ({ask, n, agent, reason}) =>
  make("li", "", `An answer of ${agent} for experiment ${n} was not used: ${reason} `, transcript(ask));

function cost(spent) {
  if (!spent) return "";
  if (spent.usd) return `$${spent.usd.toFixed(2)}`;
  return spent.tokens ? `${count(spent.tokens)} tokens` : "";
}

function phases(found) {
  const pairs = Object.entries(found).filter(([, seconds]) => seconds > 0);
  if (!pairs.length) return [];
  const bar = make("div", "phases");
  for (const [name, seconds] of pairs) {
    const part = make("div", `p-${name}`);
    part.style.flexGrow = seconds;
    part.title = `${name} ${duration(seconds)}`;
    bar.append(part);
  }
  const words = make("dl", "facts");
  terms(words, pairs.map(([name, seconds]) => [name, duration(seconds), `key p-${name}`]));
  return [bar, words];
}

function facts(found) {
  const list = make("dl", "facts");
  const spent = found.spent || {};
  terms(list, [
    ["by", found.agent],
    ["answers", spent.asked ? `${spent.asked} in ${duration(spent.agent_s)}` : ""],
    ["tokens", spent.tokens && spent.usd ? count(spent.tokens) : ""],
    ["accelerator", spent.accelerator_s ? duration(spent.accelerator_s) : ""],
    ["repaired", !found.repairs ? "" : found.repairs === 1 ? "once" : `${found.repairs} times`],
    ["at", found.finished ? new Date(1000 * found.finished).toLocaleString() : ""],
    ["commit", found.commit ? found.commit.slice(0, 7) : ""],
  ]);
  return list;
}

/** A part that opens and closes, and stays open or closed for the next experiment. */
function section(name, title, words, ...content) {
  const made = make("details", `part-${name}`, make("summary", "", title, make("small", "", words)), ...content);
  made.open = Boolean(view.open[name]);
  made.addEventListener("toggle", () => { view.open[name] = made.open; });
  return made;
}

function lossWords(found) {
  const last = found.curve[found.curve.length - 1][1], other = found.base_curve || [];
  if (!known(found.status)) return `${last.toFixed(4)} so far`;
  if (!other.length) return `${last.toFixed(4)} at the end`;
  const base = other[other.length - 1][1];
  return `${last.toFixed(4)} at the end, ${signed(last - base, 4)} against ${found.base}`;
}

function diffWords(found) {
  if (found.problem) return "";
  const number = (kind) => found.lines.filter(([one]) => one === kind).length;
  return `+${number("+")} −${number("-")}${found.cut ? ", cut" : ""}`;
}

/** What an agent printed, loaded once the part is open. */
function answerOf(ask) {
  const text = block(""), made = section("answer", "Answer", "of its agent", text);
  const load = async () => {
    if (!made.open || text.textContent) return;
    try { text.textContent = await said(ask); } catch { text.textContent = "The server is away."; }
  };
  made.addEventListener("toggle", load);
  load();
  return made;
}

// -------------------------------------------------------------------------------------- lineage

const BASED = 24;  // experiments that are named

/** What an experiment was based on, the baseline first. */
function ancestors(point) {
  const found = [];
  for (let one = numbered.get(point.base); one && found.length < model.points.length; one = numbered.get(one.base)) found.unshift(one);
  return found;
}

const basedOn = (point) => model.points.filter(({base}) => base === point.n);

function lineageWords(point) {
  const steps = ancestors(point).length, based = basedOn(point).length;
  return `${steps === 1 ? "1 step" : `${steps} steps`} from the baseline, ${based || "nothing"} based on it`;
}

/** What became of a point besides its status: how it came about, and whether it was taken out. */
function relations({n, of, excursion, together = [], without = [], combines = []}) {
  const removed = model.summary.claims?.pruned?.removed || [];
  const carried = together.length ? listed(together) : of;
  return [known(of) ? `carries over ${carried}` : "", known(excursion) ? `on an excursion from ${excursion}` : "",
    combines.length ? `combines ${listed(combines)}` : "", without.length ? `takes out ${listed(without)}` : "",
    removed.includes(n) ? "taken out by a pruning" : ""].filter(Boolean);
}

function lineage(point) {
  const entry = (one) => make("li", one === point ? "here" : "", numberLink(one.n, ""), ` ${one.description || ""} `,
    make("small", "", [WORDS[one.status] || one.status, change(one.change), ...relations(one)].filter(Boolean).join(", ")));
  const based = basedOn(point), kept = based.filter(({status}) => status === "keep").length;
  const links = based.slice(0, BASED).flatMap(({n}) => [" ", numberLink(n, "")]);
  const more = based.length > BASED ? ` and ${based.length - BASED} more` : "";
  return [make("ol", "line", ...[...ancestors(point), point].map(entry)),
    ...(based.length ? [make("p", "note", `Based on it (${kept} kept):`, ...links, more)] : [])];
}

const KINDS = {"+": "plus", "-": "minus", "@": "at", " ": ""};

function diff(found) {
  if (found.problem) return [make("p", "note", found.problem)];
  if (!found.lines.length) return [make("p", "note", "It changed nothing.")];
  const code = make("code", "");
  for (const [kind, old, now, words] of found.lines) {
    const spans = words.map(([name, text]) => (name ? make("span", `t-${name}`, text) : text));
    const numbers = kind === "@" ? [] : [make("i", "", String(now ?? old)), `${kind} `];
    code.append(make("div", KINDS[kind], ...numbers, ...spans));
  }
  return [scrolls("diff", "What it changed in train.py", code), ...(found.cut ? [make("p", "note", "The rest is left out here: autoresearch-jax show prints all.")] : [])];
}

function numbers(pairs) {
  const body = make("tbody", "");
  for (const [name, value] of Object.entries(pairs)) {
    const text = typeof value !== "number" ? value ?? "—"
      : String(Number.isInteger(value) ? value : Number(value.toPrecision(7)));
    body.append(make("tr", "", make("td", "", name), make("td", "", text)));
  }
  return make("table", "numbers", body);
}
