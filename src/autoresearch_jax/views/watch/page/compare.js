"use strict";
// Experiments side by side: those that the person has picked in the table or in the detail.

const MOST = 6;  // experiments at a time
let picked = [];  // their numbers, in the order in which they were picked

/** A box that picks an experiment for the comparison. */
function picker(n) {
  const box = Object.assign(make("input", ""), {type: "checkbox", value: n});
  mark(box);
  box.setAttribute("aria-label", `Compare experiment ${n}`);
  box.addEventListener("change", () => pick(n, box.checked));
  return box;
}

function mark(box) {
  box.checked = picked.includes(Number(box.value));
  box.disabled = !box.checked && picked.length >= MOST;
}

function pick(n, on) {
  choosePicked([...picked.filter((one) => one !== n), ...(on ? [n] : [])].slice(0, MOST));
}

function choosePicked(these) {
  picked = these;
  for (const box of document.querySelectorAll(".pick input")) mark(box);
  showComparison();
}

/** A name for each: "3 and 7", "3, 7 and 12". */
const listed = (names) => (names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : `${names[0]}`);

async function showComparison() {
  const place = $("comparison"), these = picked, {title} = model;
  place.hidden = !these.length;
  if (!these.length) return;
  const heading = make("h2", "", these.length > 1 ? `Experiments ${listed(these)}` : `Experiment ${these[0]}: pick another to compare it with`);
  heading.id = "comparison-title";
  const clear = make("button", "", "Close");
  clear.type = "button";
  clear.addEventListener("click", () => {
    choosePicked([]);
    $("chart").focus();
  });
  const bar = make("div", "bar", heading, clear);
  if (these.length < 2) { place.replaceChildren(bar); return; }
  let found = [], sides = null;
  try {
    found = await Promise.all(these.map(detail));
    sides = (isReport() ? null : await fetched(`compare/${these}`)) ?? inReport(found);
  } catch { /* the server is away: what is shown stays */ return; }
  if (picked !== these || model.title !== title) return;
  const figure = make("figure", "loss"), curves = found.map((one, at) => [`line-${at}`, String(these[at]), one?.curve || []]);
  const parts = (sides?.verdicts || []).map((words) => make("p", "words", minus(words)));
  if (curves.some(([, , curve]) => curve.length)) parts.push(figure, lossTable(curves));
  if (sides?.diff) parts.push(section("compared", "train.py", `from ${these[0]} to ${these[1]}, ${diffWords(sides.diff)}`, ...diff(sides.diff)));
  if (isReport()) parts.push(make("p", "note", `What the noise says, speed, constants and the diff: autoresearch-jax compare ${these.join(" ")}`));
  const tables = sides ? [sideBySide("Results", sides.n, sides.results)] : [];
  if (sides?.constants?.length) tables.push(sideBySide("Constants", sides.n, sides.constants));
  place.replaceChildren(bar, make("div", "halves", make("div", "", ...parts), make("div", "", ...tables)));
  $("said").textContent = `Experiments ${listed(these)} are compared above the chart.`;
  view.curves = () => drawLoss(figure, curves);
  view.curves();
}

/** What a report knows of some experiments, in the form of the server's answer. */
function inReport(found) {
  const names = [...new Set(found.flatMap((one) => Object.keys(one?.phases || {})))];
  const rows = [
    ["description", found.map((one) => one?.description || "")], ["status", found.map((one) => one?.status || "undecided")],
    ["val_bpb", found.map((one) => fixed(one?.val_bpb, 6))], ["memory, GiB", found.map((one) => fixed(one?.memory_gb, 2))],
    ...names.map((name) => [`${name}, s`, found.map((one) => fixed(one?.phases?.[name], 1))]),
  ];
  return {n: picked, results: rows};
}

/** A table with a column for each experiment; the server adds the difference of two. */
function sideBySide(title, numbers, rows) {
  const wide = rows.some(([, cells]) => cells.length > numbers.length);
  const cell = (name, scope, ...children) => Object.assign(make(name, "", ...children), scope ? {scope} : {});
  const head = make("tr", "", cell("th", "col", title), ...numbers.map((n, at) => cell("th", "col", make("span", `key line-${at}`), numberLink(n, ""))),
    wide ? cell("th", "col", "difference") : null);
  const body = rows.map(([name, cells]) => make("tr", "", cell("th", "row", name), ...cells.map((text) => cell("td", "", text))));
  return scrolls("scroll", title, make("table", "sides", make("thead", "", head), make("tbody", "", ...body)));
}
