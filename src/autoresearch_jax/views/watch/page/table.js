"use strict";
// The table of the experiments, and its filters.

const ROWS = 60;  // more of the table at a time

/** Whether a point passes the filters. */
function wanted(point) {
  const words = view.words.toLowerCase();
  return (!view.show || kindOf(point) === view.show)
    && (!words || `${point.n} ${point.description || ""} ${point.agent || ""}`.toLowerCase().includes(words));
}

function showRows() {
  const rows = model.points.filter(wanted).reverse(), all = rows.length === model.points.length;
  const focused = document.activeElement.closest("#rows tr")?.dataset.n;
  $("rows").replaceChildren(...rows.slice(0, view.rows).map(row));
  if (focused) $("rows").querySelector(`tr[data-n="${focused}"] a`)?.focus({preventScroll: true});
  $("rows").parentElement.classList.toggle("unexpected", !model.points.some((point) => point.expected));
  $("more").hidden = rows.length <= view.rows;
  $("rows-title").textContent = !model.points.length ? "No experiment is decided yet"
    : all ? "Experiments" : `${rows.length} of ${model.points.length} experiments`;
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
    cell("", link), status, cell("score", fixed(point.val_bpb, 6) || "crash"),
    cell("change", change(point.change)), cell("expected", minus(point.expected || "")),
    cell("gib", fixed(point.memory_gb, 1)), cell("text", point.description || ""));
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
