"use strict";
// The page: what a server sends as it happens, or what a report contains.

const SILENCE = 40e3;  // milliseconds after which a connection is given up; the server sends an event every 15 s
const RETRY = 3e3;  // milliseconds
const STATES = {
  running: "running", thinking: "the agent is thinking", verifying: "verify is running", idle: "no loop is running",
  interrupted: "interrupted: the same loop command continues", lost: "connection lost, trying again", table: "from results.tsv",
  gone: "there is no such tag here any more", refused: "this link has expired: open the one that was printed last",
};
const LEGEND = {keep: "kept", discard: "discarded", beyond: "worse than shown", crash: "crashed"};

const model = {points: [], summary: {}, running: [], state: "idle"};
let numbered = new Map();  // the points, by the numbers of their experiments
const cards = new Map();  // of the running experiments
const talks = new Map();  // of the agents that think, by their questions
const view = {
  chosen: null, follows: true, show: "", words: "", rows: ROWS, sort: {by: "place", falls: true}, open: {loss: true, diff: true, compared: true},
};
const tag = new URLSearchParams(location.search).get("tag");  // that the person has chosen; null: the newest
const chart = new Staircase($("chart"), (point) => choose(point.n));

// ----------------------------------------------------------------------------------- events

/** Applies news: points from place `from` on, in the order of their decisions, and all else as it is now. */
function take(news) {
  const whole = news.whole || news.from !== model.points.length, decided = news.points;
  const turned = model.title !== undefined && news.title !== model.title;
  model.points.length = Math.min(model.points.length, news.from);
  if (whole) numbered = new Map();
  for (const point of decided) {
    point.place = model.points.push(point) - 1;
    numbered.set(point.n, point);
  }
  Object.assign(model, {...news, points: model.points, ahead: news.now - Date.now() / 1000});
  if (whole) {
    cards.clear();
    $("running").replaceChildren();
  }
  if (whole || decided.length) {
    offerTime();
    showRows();
  }
  const noise = news.summary.claims.noise?.sd, running = news.running.filter(({n}) => !numbered.has(n)).length;
  if (whole || decided.length || noise !== chart.noise || running !== chart.running) {
    Object.assign(chart, {points: model.points, noise, running});
    chart.layout();
    showLegend(noise);
  }
  showHead();
  showRunning();
  if (turned) turn(news);
  if (whole || decided.length) showInsights();
  if (!whole && decided.length) $("said").textContent = inWords(decided.at(-1));
  follow(decided, whole);
  document.dispatchEvent(new Event("model"));
}

/** Forgets what was chosen under another tag. */
function turn(news) {
  Object.assign(view, {follows: true, chosen: null});
  chart.choose(null);
  history.replaceState(null, "", location.pathname);
  $("detail").replaceChildren();
  $("insights-body").replaceChildren();
  choosePicked([]);
  if (news.before) $("said").textContent = `A loop has begun ${news.title}.`;
}

/** Shows the best until the person chooses another, and the chosen one again once it is decided. */
function follow(decided, whole) {
  const best = model.summary.best?.n ?? model.points.at(-1)?.n ?? null;
  if (!view.follows) {
    if (whole || decided.some((point) => point.n === view.chosen)) show(view.chosen);
  } else if (best !== null && (whole || best !== view.chosen)) show(best);
}

/** Offers the axis of time, unless no point has one, as in a results.tsv. */
function offerTime() {
  const [by, at] = document.querySelectorAll("input[name=by]");
  at.disabled = model.points.length > 0 && !model.points.some((point) => known(point.finished));
  if (!at.disabled || !at.checked) return;
  by.checked = true;
  chart.by = by.value;
}

function showLegend(noise) {
  const marks = Object.entries(LEGEND).map(([kind, name]) => make("li", "", sample(kind), name));
  const band = known(noise) ? [make("li", "band", `noise: ± ${noise.toFixed(6)}`)] : [];
  $("legend").replaceChildren(...marks, ...band);
}

const inWords = (point) => `Experiment ${point.n}, ${point.status}${known(point.val_bpb) ? `, ${point.val_bpb.toFixed(6)}` : ""}: ${point.description || ""}`;

const line = {source: null, heard: 0, broken: "lost"};  // heard: milliseconds; broken: the state to show if it fails

/** Listens to the server; a connection that fails, or is silent for too long, is opened again. */
function listen() {
  line.source?.close();
  const source = line.source = new EventSource(address("events"));
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
    // An answer that is not a stream, such as a proxy's, ends it for good.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => { if (source === line.source) retry(); }, RETRY);
  };
}

async function retry() {
  try {
    const answer = await fetch(address("results.csv"), {method: "HEAD"});
    line.broken = {401: "refused", 404: "gone"}[answer.status] || "lost";
  } catch { line.broken = "lost"; }
  listen();
}

/** Opens a new connection if the old one is silent, as after a phone slept or changed its network. */
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
  showTags();
  setState(model.state);
  if (!isReport()) { showWaiting(); showAgents(); }
  if (isReport()) $("state").textContent = `as of ${new Date(1000 * model.now).toLocaleString()}`;
  if (model.state === "idle" && model.ending && !isReport()) $("state").textContent = model.ending;
  if (model.passed_over) $("state").textContent += `; ${model.passed_over}`;
  const problem = [model.problem, model.failed && model.ending].filter(Boolean).map(sentence).join(" ");
  $("problem").hidden = !problem;
  $("problem").textContent = problem;
  const waits = model.unused.filter(({n}) => !numbered.has(n) && !model.running.some((one) => one.n === n));
  $("unused").hidden = !waits.length;
  $("unused").replaceChildren(...waits.map(unusedAnswer));
  showLessons();
  $("insights").hidden = isReport() ? !$("insights-data") : model.state === "table" || !model.points.length;
  if (!isReport()) $("csv").href = address("results.csv");
  $("csv").download = `${(model.title || "results").split("/").at(-1)}.csv`;
  const percent = known(start) && known(best) ? 100 * (best / start - 1) : 0;
  terms($("figures"), [
    ["best val_bpb", known(best) ? [best.toFixed(6), make("small", "", percent < 0 ? minus(`${percent.toFixed(2)}%`) : "")] : "", percent < 0 ? "good" : ""],
    ["experiments", count(summary.experiments)],
    ["kept", String(summary.improvements)],
    ["crashed", String(summary.crashes)],
    ["an hour", fixed(summary.per_hour, 1)],
    ["time", duration(summary.seconds)],
    ["cost", cost(spent)],
    ["evidence", model.claim],
  ]);
}

/** Links to the other tags; a tag that has just begun points to the one before. */
function showTags() {
  const others = (model.tags || []).filter((one) => model.title !== `autoresearch/${one}`);
  const now = JSON.stringify([others, model.before]);
  if (now === view.tags) return;  // a link keeps the focus
  view.tags = now;
  const to = (name, words) => Object.assign(make("a", "", words), {href: name ? `?tag=${encodeURIComponent(name)}` : "./"});
  $("before").replaceChildren(...(model.before ? ["new; the one before: ", to(model.before, model.before)] : []));
  $("tags").hidden = isReport() || (!others.length && tag === null);
  $("tags-list").replaceChildren(...(tag === null ? [] : [to("", "the one shown first")]), ...others.map((one) => to(one, one)));
}

/** Shows who thinks, what waits, and what people have asked for. */
function showWaiting() {
  const {thinking = [], waiting = [], hints = [], paused, state} = model;
  const thinks = thinking.map(({agent, n, since}) => `${agent} is thinking about ${n}, ${duration(Math.max(0, Math.round(now() - since)))}`);
  const words = [...(state === "thinking" && thinks.length ? [] : [STATES[state] || state]), ...thinks];
  if (paused) words.push(`paused by ${paused}`);
  $("state").textContent = words.join(", ");
  const given = $("control") ? [] : hints;  // that section shows them
  const rows = [...waiting.map(({description, by}) => ["waits", `${description} (${by})`]), ...given.map(({n, text}) => ["hint", `${n}: ${text}`])];
  $("waiting").hidden = !rows.length;
  $("waiting").replaceChildren(...rows.map(([kind, text]) => make("li", "", make("b", "", kind), " ", text)));
}

const now = () => Date.now() / 1000 + model.ahead;  // by the server's clock

/** Shows what each agent that thinks has printed last, and all of it if the person opens it. */
function showAgents() {
  const {thinking = []} = model, place = $("agents");
  place.hidden = !thinking.some(({said}) => said);
  for (const [ask, card] of talks) if (!thinking.some((one) => one.ask === ask)) { card.remove(); talks.delete(ask); }
  for (const {ask, agent, n, said: last} of thinking) {
    if (!talks.has(ask)) talks.set(ask, place.appendChild(make("details", "talk", make("summary", ""), block(""))));
    talks.get(ask).firstChild.replaceChildren(make("b", "", `${agent} on ${n}`), " ", make("span", "", last));
  }
}

/** Reads on in what agents print, where that is open. */
async function readTalks() {
  for (const [ask, card] of talks) {
    if (!card.open) continue;
    const text = card.lastChild, atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
    try { text.textContent = await said(ask); } catch { return; /* the server is away */ }
    if (atEnd) text.scrollTop = text.scrollHeight;
  }
}

/** Shows what agents and the person wrote down, the most useful first. */
function showLessons() {
  const lessons = model.lessons || [], more = model.more_lessons || 0;
  $("lessons").hidden = !lessons.length;
  $("lessons-count").textContent = more ? `the first ${lessons.length} of ${lessons.length + more}` : String(lessons.length);
  $("lessons-list").replaceChildren(...lessons.map((text) => make("li", "", text)));
}

/** Shows a card for each running experiment; those without news stay as they are. */
function showRunning() {
  const {running} = model, place = $("running");
  place.hidden = !running.length;
  place.classList.toggle("several", running.length > 1);
  for (const [key, card] of cards) {
    if (running.some((one) => keyOf(one) === key)) continue;
    card.remove();
    cards.delete(key);
  }
  for (const one of running) {
    const key = keyOf(one);
    if (!cards.has(key)) cards.set(key, place.appendChild(make("article", "run")));
    fill(cards.get(key), one);
  }
}

const keyOf = (running) => `${running.n} ${running.seed}`;

function fill(card, running) {
  const {progress} = running, now = JSON.stringify([running, model.state, card.base]);
  if (known(running.base) && !card.base) loadBase(card, running.base);
  if (card.now === now) return;
  card.now = now;
  const done = make("div"), facts = make("dl", "facts"), curve = make("figure", "spark");
  done.style.width = `${["scoring", "measured"].includes(running.phase) ? 100 : progress.percent || 0}%`;
  const state = model.state === "interrupted" ? "undecided" : running.phase;
  const phase = `${running.n} ${known(running.seed) ? "once more, " : ""}${state}`;
  terms(facts, [
    ["step", count(progress.step), "more"],
    ["loss", fixed(progress.loss, 4)],
    ["tok/s", count(progress.tokens_per_s), "speed"],
    ["MFU", fixed(progress.mfu, 1, "%"), "more"],
    ["memory", fixed(progress.memory_gb, 2, " GiB"), "more"],
    ["left", running.phase === "training" ? duration(progress.left_s) : ""],
    ["again", running.purpose],
    ["seed", running.seed, "more"],
    ["expected", minus(running.expected), "more"],
    ["carries over", running.carries.join(", ")],
    ["by", running.agent, "more"],
  ]);
  const name = make("p", "now", make("b", "", phase), " ", make("span", "", running.description));
  card.replaceChildren(make("div", "what", name, make("div", "track", done), facts), curve);
  drawLoss(curve, [["own", "", progress.curve], ["other", "", card.base || []]], true);
}

/** Loads the curve of the experiment that a running one was proposed against; tries again if that fails. */
async function loadBase(card, n) {
  card.base = [];
  try {
    card.base = (await detail(n))?.curve || [];
    if (card.isConnected) showRunning();
  } catch { card.base = null; }
}

// ----------------------------------------------------------------------------- one experiment

/** The address of something of the tag that is shown. */
const address = (path) => (tag === null ? path : `${path}?tag=${encodeURIComponent(tag)}`);

/** Returns what the server answers; null if there is no such thing. */
async function fetched(path) {
  const answer = await fetch(address(path));
  return answer.ok ? answer.json() : null;
}

/** Returns what an agent has printed by now. */
async function said(ask) {
  const answer = await fetch(address(`answer/${ask}`));
  return answer.ok ? answer.text() : "";
}

/** Returns all about an experiment, from this file or from the server. */
async function detail(n) {
  const within = $(`experiment-${n}`);
  if (within || isReport()) return within && JSON.parse(within.textContent);
  return fetched(`experiment/${n}`);
}

/** Shows what the person chose. */
function choose(n) {
  view.follows = false;
  history.replaceState(null, "", `#${n}`);  // at once: the next key may follow before an event does
  show(n);
}

async function show(n) {
  view.chosen = n;
  chart.choose(n);
  const {title} = model, point = numbered.get(n), last = Math.max(0, model.points.length - 1);
  const values = {min: 0, max: last, now: point?.place ?? model.points.length, text: point ? inWords(point) : ""};
  for (const [name, value] of Object.entries(values)) $("chart").setAttribute(`aria-value${name}`, value);
  for (const one of $("rows").children) one.toggleAttribute("aria-current", Number(one.dataset.n) === n);
  const turn = view.turn = (view.turn || 0) + 1;
  let found = null, away = false;
  try { found = await detail(n); } catch { away = true; /* the server is away: what is known is shown */ }
  if (view.turn !== turn || title !== model.title) return;
  if (found || point) showDetail(found || point);
  else if (!away) $("detail").replaceChildren(make("p", "note", `There is no experiment ${n} here.`));
}

// --------------------------------------------------------------------------------- the person

/** Returns the number of the next experiment from a place on, or of the next kept one; else null. */
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
  if (event.key === "/" && !event.target.isContentEditable && !event.ctrlKey && !event.metaKey) { event.preventDefault(); search.focus(); }
  if (typing && event.key === "Enter") { event.preventDefault(); $("rows").querySelector("a")?.focus(); }
  if (typing && event.key === "Escape") { search.textContent = ""; filter(); $("chart").focus(); }
});

$("rows").addEventListener("click", (event) => {
  const at = event.target.closest("tr");
  if (!at || event.target.closest("a, .pick")) return;
  choose(Number(at.dataset.n));
  revealDetail();
});

/** Scrolls to the detail, which in a single column may be out of sight. */
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
window.addEventListener("resize", () => { view.sketch?.(); view.curves?.(); });

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
  setInterval(() => { if (model.thinking?.length && $("state").dataset.state === model.state) showWaiting(); }, 1e3);
  setInterval(readTalks, 2e3);
  for (const name of ["online", "visibilitychange"]) window.addEventListener(name, check);
}
