"""`show`: one experiment in full."""

from collections.abc import Iterator

from rich.console import Console

from autoresearch_jax.common.text import clean, printable, sentence
from autoresearch_jax.jobs import training_log
from autoresearch_jax.loop import statistics
from autoresearch_jax.records.experiment import Experiment, UnusedAnswer
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import transcript
from autoresearch_jax.views.entries import (
    Entry,
    entries,
    entry_of,
    recorded,
    rests_on,
)
from autoresearch_jax.views.summary import cost_words, count
from autoresearch_jax.views.tables import STYLES

LOG_LINES = 20
LOG_BYTES = 2**16


def show(console: Console, workspace: Workspace, name: str, tag: str | None = None) -> None:
    """Print description, numbers, diff against its base and log tail of one experiment.

    Raises:
        UserError: there is no such experiment.
    """
    tag, experiments = recorded(workspace, tag)
    if name == str(len(experiments)) and (unused := experiments.unused(int(name))):
        console.print(
            f"experiment {name} of {tag} is not proposed yet", style="bold", highlight=False
        )
        for answer in unused:
            console.print(
                _unused_words(workspace, tag, answer), markup=False, highlight=False, soft_wrap=True
            )
        return
    one = experiments.find(name)
    decided = {entry.n: entry for entry in entries(experiments.decided, experiments.costs)}
    entry = decided.get(one.n) or entry_of(one, costs=experiments.costs)
    numbers = {key: f"{value:.6g}" for key, value in one.metrics.items()}
    diff = Candidates(workspace, tag).diff(one.base, one.commit) if one.base else ""
    log = workspace.run_dir(tag, one.n) / "run.log"
    log_tail = training_log.tail(training_log.text(log, LOG_BYTES, from_end=True), LOG_LINES)

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    line(f"experiment {one.n} of {tag}: {entry.description}", "bold")
    for label, text, style in _facts(one, entry, experiments):
        if text:
            line(f"{label:<10}{text}", style)
    for text in experiments.lessons_of(one.n):
        line(f"{'lesson':<10}{clean(text, limit=1000)}")
    for answer in experiments.unused(one.n):
        line(f"{'unused':<10}{_unused_words(workspace, tag, answer)}")
    for title, table in (("numbers", numbers), ("rests on", rests_on(one))):
        if table:
            line(f"\n{title}", "bold")
        for key, value in table.items():
            line(f"  {key:<22}{clean(value)}")
    for place, text in enumerate(printable(diff).splitlines()):
        line(text if place else f"\n{text}", diff_style(text))
    for path in transcript.files(log.parent):
        line(f"\nthe last lines of its agent, in {path}", "bold")
        line("\n".join(transcript.read(path).splitlines()[-LOG_LINES:]), "dim")
    if log_tail:
        line(f"\nthe last lines of {log}", "bold")
        line(log_tail, "dim")


def _unused_words(workspace: Workspace, tag: str, answer: UnusedAnswer) -> str:
    """Return why an answer was of no use, and where its transcript is."""
    words = f"an answer of {clean(answer.agent)}: {sentence(clean(answer.reason, limit=1000))}"
    paths = transcript.files(workspace.ask_dir(tag, answer.ask))
    return f"{words} Its transcript: {paths[0]}" if paths else words


def _facts(
    one: Experiment, entry: Entry, experiments: Experiments
) -> Iterator[tuple[str, str, str]]:
    """Yield label, text and style of each line; the text is "" if it is not known."""
    status = one.status or "undecided"
    change = status if entry.change is None else f"{entry.change:+.6f}"
    repaired = f"{count(one.repairs, 'time')} after a crash" if one.repairs else ""
    yield "commit", one.commit, ""
    yield "base", one.base, ""
    yield "status", status, STYLES.get(status, "")
    if entry.val_bpb is not None:
        since = "" if entry.change is None else f", {entry.change:+.6f} from the best before it"
        yield "val_bpb", f"{entry.val_bpb:.6f}{since}", ""
    yield "agent", entry.agent, ""
    yield "expected", entry.expected and f"{entry.expected}; result: {change}", ""
    yield "ideas", ", ".join(map(clean, one.ideas)), ""
    line = f"excursion from experiment {one.excursion}" if one.excursion is not None else ""
    yield "line", line and f"{line}, whose trials are compared with what they change", ""
    for n in one.combines:
        yield "combines", f"{n}: {experiments[n].title}", ""
    for n in one.carries:
        yield "carries", f"over experiment {n}: {experiments[n].title}", ""
    for other in experiments:
        if one.n in other.carries:
            yield "carried", f"over as experiment {other.n}: {other.status or 'undecided'}", ""
    yield "prune", f"takes out {', '.join(map(str, one.without))}" if one.without else "", ""
    yield "repaired", repaired, ""
    yield "cost", cost_words(entry.spent), ""
    yield "reason", clean(one.reason, limit=1000), ""
    yield "decision", clean(one.verdict), ""
    for repeat in one.repeats:
        score = repeat.reason if repeat.score is None else f"{repeat.split} {repeat.score:.6f}"
        yield "again", f"{score} (seed {repeat.seed}, {repeat.purpose})", ""
    for found in statistics.scale_lines(experiments.scaled.get(one.n, [])):
        yield "scale", found, ""
    yield "note", clean(one.remarks, limit=1000), "yellow"
    if entry.phases:
        words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in entry.phases.items())
        yield "seconds", f"{words}; together {sum(entry.phases.values()):.1f}", ""


def diff_style(line: str) -> str:
    if line.startswith(("+++", "---", "diff ", "index ")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
