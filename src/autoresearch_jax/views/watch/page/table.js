"use strict";
// The table of the experiments, and what it is narrowed to.

const ROWS = 60;  // of the table at once

/** Whether a point is among those that the person wants to see. */
function wanted(point) {
  const words = view.words.toLowerCase();
  return (!view.show || kindOf(point) === view.show)
    && (!words || `${point.n} ${point.description} ${point.agent || ""}`.toLowerCase().includes(words));
}

function showRows() {
  const rows = model.points.filter(wanted).reverse();
  $("rows").replaceChildren(...rows.slice(0, view.rows).map(row));
  $("rows").parentElement.classList.toggle("unexpected", !model.points.some((point) => point.expected));
  countRows(rows.length);
}

/** New ones go on top; the others stay as they are. */
function addRows(points) {
  $("rows").prepend(...points.filter(wanted).reverse().map(row));
  while ($("rows").childElementCount > view.rows) $("rows").lastElementChild.remove();
  if (points.some((point) => point.expected)) $("rows").parentElement.classList.remove("unexpected");
  countRows(model.points.filter(wanted).length);
}

function countRows(count) {
  $("more").hidden = count <= view.rows;
  const all = count === model.points.length;
  $("rows-title").textContent = !model.points.length ? "No experiment is decided yet"
    : all ? "Experiments" : `${count} of ${model.points.length} experiments`;
}

function row(point) {
  const kind = kindOf(point);
  const link = make("a", "", String(point.n));
  link.href = `#${point.n}`;
  const cell = (className, ...children) => make("td", className, ...children);
  const status = cell("", sample(kind));
  status.title = point.status;
  status.append(make("span", "sr", point.status));
  const made = make("tr", `is-${kind}`,
    cell("", link), status, cell("score", kind === "crash" ? "crash" : point.val_bpb.toFixed(6)),
    cell("gain", change(point.gain)), cell("expected", minus(point.expected || "")),
    cell("gib", known(point.memory_gb) ? point.memory_gb.toFixed(1) : ""), cell("text", point.description || ""));
  made.dataset.n = point.n;
  if (point.n === view.chosen) made.setAttribute("aria-current", "true");
  return made;
}

function filter() {
  view.words = $("search").textContent.replace(/\s+/g, " ").trim();
  view.rows = ROWS;
  showRows();
}

$("search").addEventListener("input", filter);
$("more").addEventListener("click", () => { view.rows += ROWS; showRows(); });
for (const one of document.querySelectorAll("input[name=show]")) {
  one.addEventListener("change", () => { view.show = one.value; view.rows = ROWS; showRows(); });
}
