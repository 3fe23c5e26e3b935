"use strict";
// What `watch --web --control` adds to the page: it steers the loop.

const ALIVE = ["running", "thinking", "verifying"];  // states in which a process can be stopped
const QUESTIONS = {
  stop: ["Stop the loop?", "What runs is finished and recorded first. The same loop command continues later.", "Stop"],
  "stop-now": ["Stop the loop now?", "What runs is abandoned. The same loop command trains it again.", "Stop now"],
};
const dropQuestion = (n) => [`Drop experiment ${n}?`,
  "The branch moves to what was kept before it. What was kept later is proposed again without it, and measured.", `Drop ${n}`];

const leading = {secret: takeSecret(), busy: false, hints: "", shown: null};  // shown: the experiment in full

/** Takes the secret out of the printed link. The browser keeps it for this address and port alone, unlike a cookie. */
function takeSecret() {
  const found = /^#control=([\w-]+)$/.exec(location.hash);
  if (found) {
    localStorage.setItem("control", found[1]);
    history.replaceState(null, "", location.pathname);
  }
  return localStorage.getItem("control");
}

// ---------------------------------------------------------------------------------- asking

/** Asks the server for an action under a tag, shows its answer, and returns whether it was carried out. */
async function ask(action, order) {
  setBusy(true);
  let good = false, said = "";
  try {
    const headers = {"Content-Type": "application/json", "X-Autoresearch-Control": leading.secret};
    const answer = await fetch(address(`control/${action}`), {method: "POST", headers, body: JSON.stringify(order)});
    [good, said] = [answer.ok, (await answer.text()).trim()];
  } catch { said = "no answer came from the server, so it is not known whether that was done. Look at what the page shows."; }
  say(good, said);
  setBusy(false);
  return good;
}

/** Shows an answer where a screen reader reads it out, also if the person pressed a button further down. */
function say(good, said) {
  const place = $(good ? "outcome" : "refusal");
  $(good ? "refusal" : "outcome").textContent = "";
  place.textContent = `${said.charAt(0).toUpperCase()}${said.slice(1)}`;  // a command at its end stays as it is typed
  place.scrollIntoView({block: "nearest"});
}

/** Asks a question, and does the action if the person agrees; Escape and Cancel do nothing. */
function confirmed(action, [title, words, verb], order) {
  const dialog = $("question");
  $("question-title").textContent = title;
  $("question-words").textContent = words;
  $("agree").textContent = verb;
  dialog.returnValue = "";
  dialog.onclose = () => { if (dialog.returnValue) ask(action, order); };
  dialog.showModal();
}

/** The content of a file in base64. */
const contentOf = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

// --------------------------------------------------------------------------------- showing

function setBusy(busy) {
  leading.busy = busy;
  $("control").setAttribute("aria-busy", busy);
  showControl();
}

/** Lets a button do something or not. It stays in the order of the keyboard, which `disabled` would take it out of. */
const enable = (button, able) => button.setAttribute("aria-disabled", leading.busy || !able);

const written = (id) => $(id).textContent.replace(/\s+/g, " ").trim();

function showControl() {
  $("control").hidden = !model.tag;
  $("locked").hidden = Boolean(leading.secret);
  for (const id of ["verbs", "try"]) $(id).hidden = !leading.secret;
  $("pause").textContent = model.paused ? "Resume" : "Pause";
  const alive = ALIVE.includes(model.state);
  enable($("pause"), true);
  enable($("stop"), alive);
  enable($("stop-now"), alive);
  enable($("give"), written("hint"));
  enable($("propose"), written("changes") && $("file").files.length && model.summary.best);
  showHints();
  showDrop();
}

function showHints() {
  const {hints = []} = model, now = JSON.stringify(hints);
  if (now !== leading.hints) {
    leading.hints = now;
    const focused = $("hints").contains(document.activeElement);
    $("hints").hidden = !hints.length;
    $("hints").replaceChildren(...hints.map(hintRow));
    if (focused) $("hint").focus();
  }
  for (const button of $("hints").querySelectorAll("button")) enable(button, leading.secret);
}

function hintRow({n, text, by}) {
  const button = make("button", "", "Withdraw");
  button.type = "button";
  button.setAttribute("aria-label", `Withdraw hint ${n}`);
  button.addEventListener("click", () => press(button, () => ask("withdraw", {tag: model.tag, n})));
  return make("li", "", make("span", "", make("b", "", `hint ${n}`), ` ${text} `, make("small", "", by)), button);
}

/** Offers to drop the experiment that is shown in full, if it is kept and not the baseline. */
function showDrop() {
  const {shown} = leading, head = $("detail").querySelector("h2"), first = model.points.find((point) => point.status === "keep");
  const can = leading.secret && head && shown?.status === "keep" && shown.n !== first?.n;
  let button = $("drop");
  if (!can) { button?.remove(); return; }
  if (!button) {
    button = make("button", "drop", "Drop…");
    button.id = "drop";
    button.type = "button";
    button.addEventListener("click", () => press(button, () => {
      const {n} = leading.shown;
      confirmed("drop", dropQuestion(n), {tag: model.tag, n});
    }));
    head.after(button);
  }
  button.setAttribute("aria-label", `Drop experiment ${shown.n}`);
  enable(button, true);
}

// ------------------------------------------------------------------------------ the person

/** Does what a button is for, unless that makes no sense now. */
function press(button, act) {
  if (button.getAttribute("aria-disabled") !== "true") act();
}

const onPress = (id, act) => $(id).addEventListener("click", () => press($(id), act));

onPress("pause", () => ask(model.paused ? "resume" : "pause", {tag: model.tag}));
for (const action of ["stop", "stop-now"]) onPress(action, () => confirmed(action, QUESTIONS[action], {tag: model.tag}));
onPress("give", async () => {
  if (await ask("hint", {tag: model.tag, text: written("hint")})) $("hint").textContent = "";
  showControl();
});
onPress("propose", async () => {
  const order = {tag: model.tag, text: written("changes")}, [file] = $("file").files;
  let source = "";
  try { source = await contentOf(file); } catch (error) {
    say(false, `${file.name} cannot be read: ${error.message}`);
    return;
  }
  if (await ask("try", {...order, name: file.name, source})) {
    $("changes").textContent = $("file").value = "";
  }
  showControl();
});
for (const [field, button] of [["hint", "give"], ["changes", "propose"]]) {
  $(field).addEventListener("input", showControl);
  $(field).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    $(button).click();
  });
}
$("file").addEventListener("change", showControl);
$("cancel").addEventListener("click", () => $("question").close(""));
$("agree").addEventListener("click", () => $("question").close("yes"));
document.addEventListener("model", showControl);
document.addEventListener("detail", (event) => { leading.shown = event.detail; showControl(); });
