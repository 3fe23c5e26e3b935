"use strict";
// The table of the experiments, and its filters.

const ROWS = 60;  // more of the table at a time
// What a column sorts by. Larger values come first in the first two, smaller ones in the others.
const SORTS = {
  place: (point) => point.place, status: (point) => ["crash", "discard", "keep"].indexOf(kindOf(point)),
  val_bpb: (point) => point.val_bpb, change: (point) => point.change, expected: (point) => parseFloat((point.expected || "").replace("−", "-")) || null,
  memory_gb: (point) => point.memory_gb, description: (point) => point.description,
};
const FALLING = ["place", "status"];

/** Whether a point passes the filters. */
function wanted(point) {
  const words = view.words.toLowerCase();
  return (!view.show || kindOf(point) === view.show)
    && (!words || `${point.n} ${point.description || ""} ${point.agent || ""}`.toLowerCase().includes(words));
}

/** Points in the order of a column, those without a value last; `falls`: the largest first. */
function sorted(points, {by, falls}) {
  const value = SORTS[by], sign = falls ? -1 : 1;
  if (by === "place") return falls ? points.reverse() : points;
  const order = (a, b) => sign * (typeof a === "string" ? a.localeCompare(b, "en", {numeric: true}) : a - b);
  const [ranked, others] = [true, false].map((has) => points.filter((point) => known(value(point)) === has));
  return [...ranked.sort((a, b) => order(value(a), value(b)) || b.place - a.place), ...others];
}

function showRows() {
  const rows = sorted(model.points.filter(wanted), view.sort), all = rows.length === model.points.length;
  const focused = document.activeElement.closest("#rows tr")?.dataset.n;
  const part = document.activeElement.matches("input") ? "input" : "a";
  $("rows").replaceChildren(...rows.slice(0, view.rows).map(row));
  if (focused) $("rows").querySelector(`tr[data-n="${focused}"] ${part}`)?.focus({preventScroll: true});
  for (const one of document.querySelectorAll("[data-sort]")) {
    const falls = view.sort.by === one.dataset.sort ? view.sort.falls : null;
    one.parentElement.ariaSort = falls === null ? "none" : falls ? "descending" : "ascending";
  }
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
    cell("pick", picker(point.n)), cell("", link), status, cell("score", fixed(point.val_bpb, 6) || "crash"),
    cell("change", change(point.change)), cell("expected", minus(point.expected || "")),
    cell("memory_gb", fixed(point.memory_gb, 1)), cell("text", point.description || ""));
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
for (const one of document.querySelectorAll("[data-sort]")) {
  one.addEventListener("click", () => {
    const by = one.dataset.sort, again = view.sort.by === by;
    view.sort = {by, falls: again ? !view.sort.falls : FALLING.includes(by)};
    showRows();
  });
}
$("more").addEventListener("click", () => { view.rows += ROWS; showRows(); });
for (const one of document.querySelectorAll("input[name=show]")) {
  one.addEventListener("change", () => { view.show = one.value; view.rows = ROWS; showRows(); });
}
