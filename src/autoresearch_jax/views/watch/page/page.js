"use strict";
// The page: what a server sends as it happens, or what a report contains.

const SILENCE = 40e3;  // milliseconds after which a connection is given up; the server says something every 15 s
const RETRY = 3e3;  // milliseconds
const KEPT_DETAILS = 50;  // experiments whose details stay in memory
const STATES = {
  running: "running", thinking: "the agent is thinking", verifying: "verify is running", idle: "no loop is running",
  interrupted: "interrupted: the same loop command goes on", lost: "connection lost, trying again", table: "from results.tsv",
  refused: "this link has expired: open the one that was printed last",
};
const LEGEND = {keep: "kept", discard: "discarded", beyond: "worse than shown", crash: "crashed"};

const model = {points: [], summary: {}, running: [], state: "idle"};
let numbered = new Map();  // the points by the numbers of their experiments
const cards = new Map();  // of what runs
const details = new Map();
const view = {chosen: null, follows: true, show: "", words: "", rows: ROWS, open: {loss: true, diff: true}};
const chart = new Staircase($("chart"), (point) => choose(point.n));

// ----------------------------------------------------------------------------------- events

/** Takes in what is new: points from place `from` on, as they were decided, and all else as it is. */
function take(news) {
  const whole = news.whole || news.from !== model.points.length;
  const turned = model.title !== undefined && news.title !== model.title;
  model.points.length = Math.min(model.points.length, news.from);
  if (whole) numbered = new Map();
  for (const point of news.points) {
    point.place = model.points.push(point) - 1;
    numbered.set(point.n, point);
  }
  Object.assign(model, {...news, points: model.points});
  chart.points = model.points;
  const noise = news.summary.claims.noise?.sd ?? null, noisy = noise !== chart.noise, running = news.running.filter(({n}) => !numbered.has(n)).length;
  const began = running !== chart.running;
  if (noisy || !$("legend").childElementCount) showLegend(noise);
  if (news.points.length === model.points.length) offerTime();
  Object.assign(chart, {noise, running});
  if (whole) {
    details.clear();
    cards.clear();
    $("running").replaceChildren();
    chart.layout();
  } else if (news.points.length) chart.add(news.points);
  if (noisy && chart.svg) chart.drawStairs();
  if (began && chart.svg) chart.drawPending();
  showHead();
  showRunning();
  if (whole) showRows(); else addRows(news.points);
  if (turned) turn(news);
  if (!whole && news.points.length) announce(news.points[news.points.length - 1]);
  follow(news, whole);
}

/** Another tag is shown from now on: what was chosen was of the one before. */
function turn(news) {
  Object.assign(view, {follows: true, chosen: null});
  chart.choose(null);
  history.replaceState(null, "", location.pathname);
  $("detail").replaceChildren();
  if (news.before) $("said").textContent = `A loop has begun ${news.title}.`;
}

/** Shows the best until the person chooses another; the chosen one again once more is known of it. */
function follow(news, whole) {
  if (!view.follows) {
    if (!whole && !news.points.some((point) => point.n === view.chosen)) return;
    details.delete(view.chosen);
    show(view.chosen);
    return;
  }
  const best = news.summary.best?.n ?? model.points.at(-1)?.n ?? null;
  if (best !== null && (whole || best !== view.chosen)) show(best);
}

/** Only where a point has a time can they be shown by it: a results.tsv has none. */
function offerTime() {
  const [by, at] = document.querySelectorAll("input[name=by]");
  at.disabled = model.points.length > 0 && !model.points.some((point) => point.finished !== undefined);
  if (!at.disabled || !at.checked) return;
  by.checked = true;
  chart.by = by.value;
}

function showLegend(noise) {
  const marks = Object.entries(LEGEND).map(([kind, name]) => make("li", "", sample(kind), name));
  const band = known(noise) ? [make("li", "band", `noise: ± ${noise.toFixed(6)}`)] : [];
  $("legend").replaceChildren(...marks, ...band);
}

function announce(point) {
  $("said").textContent = `Experiment ${point.n}: ${point.status}${known(point.val_bpb) ? `, ${point.val_bpb.toFixed(6)}` : ""}. ${point.description}`;
}

const line = {source: null, heard: 0, broken: "lost"};  // heard: when; broken: what is said where it is

/** Hears what is new; a connection that fails, or is silent for too long, is made anew. */
function listen() {
  line.source?.close();
  const source = line.source = new EventSource("events");
  const hear = () => { line.heard = Date.now(); };
  hear();
  source.addEventListener("model", (event) => {
    hear();
    line.broken = "lost";
    take(JSON.parse(event.data));
  });
  source.addEventListener("alive", hear);
  source.onerror = () => {
    setState(line.broken);
    // An answer that is no stream, such as a proxy's, ends it for good.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => { if (source === line.source) retry(); }, RETRY);
  };
}

async function retry() {
  try {
    const answer = await fetch("page.css", {method: "HEAD"});
    line.broken = answer.status === 401 ? "refused" : "lost";
  } catch { line.broken = "lost"; }
  listen();
}

/** After a phone slept or changed its network, nothing tells that the old connection is dead. */
function check() {
  if (!line.source || Date.now() - line.heard < SILENCE) return;
  setState("lost");
  listen();
}

// ------------------------------------------------------------------------------------- head

function setState(state) {
  $("state").dataset.state = state;
  $("state").textContent = STATES[state] || state;
}

function showHead() {
  const {summary} = model, {spent, start} = summary, best = summary.best?.val_bpb;
  document.title = known(best) ? `${best.toFixed(4)} · ${model.title}` : model.title;
  $("title").textContent = model.title;
  $("before").textContent = model.before ? `new; to see the one before: autoresearch-jax watch --web --tag ${model.before}` : "";
  setState(model.state);
  if (isReport()) $("state").textContent = `as of ${new Date(1000 * model.now).toLocaleString()}`;
  $("problem").hidden = !model.problem;
  $("problem").textContent = model.problem;
  const percent = known(start) && known(best) ? 100 * (best / start - 1) : 0;
  terms($("figures"), [
    ["best val_bpb", known(best) ? [best.toFixed(6), percent < 0 ? make("small", "", minus(`${percent.toFixed(2)}%`)) : ""] : "", percent < 0 ? "good" : ""],
    ["experiments", count(summary.experiments)],
    ["kept", String(summary.improvements)],
    ["crashed", String(summary.crashes)],
    ["an hour", known(summary.per_hour) ? summary.per_hour.toFixed(1) : ""],
    ["time", known(summary.seconds) ? duration(summary.seconds) : ""],
    ["cost", cost(spent)],
    ["gain", model.claim],
  ]);
}

/** A card for each that runs; those of which nothing is new stay as they are. */
function showRunning() {
  const {running} = model, place = $("running");
  place.hidden = !running.length;
  place.classList.toggle("several", running.length > 1);
  for (const [n, card] of cards) {
    if (running.some((one) => keyOf(one) === n)) continue;
    card.remove();
    cards.delete(n);
  }
  for (const one of running) {
    const key = keyOf(one);
    if (!cards.has(key)) cards.set(key, place.appendChild(make("article", "run")));
    fill(cards.get(key), one);
  }
}

const keyOf = (running) => `${running.n} ${running.seed}`;

function fill(card, running) {
  const {progress} = running, base = card.base || [];
  const now = JSON.stringify([running, base.length]);
  if (known(running.base) && !card.base && !card.asked) askForBase(card, running.base);
  if (card.now === now) return;
  card.now = now;
  if (!card.childElementCount) {
    card.parts = {name: make("b"), text: make("span"), done: make("div"), facts: make("dl", "facts"), curve: make("figure", "spark")};
    const {name, text, done, facts, curve} = card.parts;
    card.append(make("div", "what", make("p", "now", name, " ", text), make("div", "track", done), facts), curve);
  }
  const {name, text, done, facts, curve} = card.parts;
  name.textContent = `${running.n} ${known(running.seed) ? "once more, " : ""}${running.phase}`;
  text.textContent = running.description;
  done.style.width = `${["scoring", "measured"].includes(running.phase) ? 100 : progress.percent || 0}%`;
  terms(facts, [
    ["step", known(progress.step) ? count(progress.step) : "", "more"],
    ["loss", known(progress.loss) ? progress.loss.toFixed(4) : ""],
    ["tok/s", known(progress.tokens_per_s) ? count(progress.tokens_per_s) : "", "speed"],
    ["MFU", known(progress.mfu) ? `${progress.mfu.toFixed(1)}%` : "", "more"],
    ["memory", known(progress.memory_gb) ? `${progress.memory_gb.toFixed(2)} GiB` : "", "more"],
    ["left", known(progress.left_s) && running.phase === "training" ? duration(progress.left_s) : ""],
    ["again", running.purpose],
    ["seed", running.seed, "more"],
    ["expected", minus(running.expected), "more"],
    ["carries over", numberLink(running.of, "")],
    ["by", running.agent, "more"],
  ]);
  drawLoss(curve, progress.curve, base);
}

/** The curve that it is drawn against; asked for again with the next news where it did not come. */
async function askForBase(card, n) {
  card.asked = true;
  try {
    card.base = (await detail(n))?.curve;
    if (card.base && card.isConnected) showRunning();
  } catch { /* the server is away */ }
  card.asked = Boolean(card.base);
}

// ----------------------------------------------------------------------------- one experiment

/** All about an experiment: from this file, or from the server. */
async function detail(n) {
  if (details.has(n)) return remember(n, details.get(n));
  const within = $(`experiment-${n}`), {title} = model;
  let found = within ? JSON.parse(within.textContent) : null;
  if (!within && !isReport()) {
    const answer = await fetch(`experiment/${n}`);
    found = answer.ok ? await answer.json() : null;
  }
  if (title !== model.title) return null;  // it was asked about another tag
  return found && known(found.status) ? remember(n, found) : found;
}

/** Those that were looked at last stay in memory. */
function remember(n, found) {
  details.delete(n);
  details.set(n, found);
  if (details.size > KEPT_DETAILS) details.delete(details.keys().next().value);
  return found;
}

/** The person chose it. */
function choose(n) {
  view.follows = false;
  history.replaceState(null, "", `#${n}`);  // at once: the next key may follow before an event does
  show(n);
}

async function show(n) {
  view.chosen = n;
  chart.choose(n);
  tellChart(n);
  for (const one of $("rows").children) one.toggleAttribute("aria-current", Number(one.dataset.n) === n);
  let found = null, away = false;
  try { found = await detail(n); } catch { away = true; /* what is known is shown */ }
  if (view.chosen !== n) return;
  const point = numbered.get(n);
  if (!found && point) found = point;
  if (found) showDetail(found);
  else if (!away) $("detail").replaceChildren(make("p", "note", `There is no experiment ${n} here.`));
}

function tellChart(n) {
  const point = numbered.get(n), place = $("chart");
  place.setAttribute("aria-valuemin", "0");
  place.setAttribute("aria-valuemax", String(Math.max(0, model.points.length - 1)));
  place.setAttribute("aria-valuenow", String(point?.place ?? model.points.length));
  if (point) place.setAttribute("aria-valuetext", `Experiment ${n}, ${point.status}${known(point.val_bpb) ? `, ${point.val_bpb.toFixed(6)}` : ""}: ${point.description}`);
}

// --------------------------------------------------------------------------------- the person

/** One step from a place through the experiments, or through those that were kept: a number. */
function step(from, by, kept) {
  for (let at = from + by; at >= 0 && at < model.points.length; at += by) {
    if (!kept || model.points[at].status === "keep") return model.points[at].n;
  }
  return null;
}

$("chart").addEventListener("keydown", (event) => {
  const last = model.points.length - 1, from = numbered.get(view.chosen)?.place ?? last;
  const moves = {
    ArrowLeft: () => step(from, -1, event.shiftKey), ArrowRight: () => step(from, 1, event.shiftKey),
    ArrowDown: () => step(from, -1, true), ArrowUp: () => step(from, 1, true),
    Home: () => model.points[0].n, End: () => model.points[last].n, Enter: () => { $("detail").focus(); return null; },
  };
  if (!moves[event.key] || last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const n = moves[event.key]();
  if (n !== null) choose(n);
});

document.addEventListener("keydown", (event) => {
  const search = $("search"), typing = event.target === search;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); search.focus(); }
  if (typing && event.key === "Enter") { event.preventDefault(); $("rows").querySelector("a")?.focus(); }
  if (typing && event.key === "Escape") { search.textContent = ""; filter(); $("chart").focus(); }
});

$("rows").addEventListener("click", (event) => {
  const at = event.target.closest("tr");
  if (!at || event.target.closest("a")) return;
  choose(Number(at.dataset.n));
  revealDetail();
});

/** Where one column holds all, what was chosen in the table may be out of sight. */
function revealDetail() {
  if (matchMedia("(max-width: 900px)").matches) $("detail").scrollIntoView({block: "start"});
}

for (const one of document.querySelectorAll("input[name=by]")) {
  one.addEventListener("change", () => { chart.by = one.value; chart.layout(); });
}
window.addEventListener("hashchange", () => {
  if (!/^#\d+$/.test(location.hash)) return;
  view.follows = false;
  show(Number(location.hash.slice(1)));
  revealDetail();
});
window.addEventListener("resize", () => view.sketch?.());

// ------------------------------------------------------------------------------------ start

$("footer").append("In the chart ", make("kbd", "", "←"), " ", make("kbd", "", "→"), " step through the experiments, ",
  make("kbd", "", "↑"), " ", make("kbd", "", "↓"), " through those that were kept; ", make("kbd", "", "/"), " filters the table.");
if (/^#\d+$/.test(location.hash)) {
  view.follows = false;
  view.chosen = Number(location.hash.slice(1));
}
if ($("model")) {
  document.body.dataset.report = "";
  take(JSON.parse($("model").textContent));
} else {
  listen();
  setInterval(check, 5e3);
  for (const name of ["online", "visibilitychange"]) window.addEventListener(name, check);
}
