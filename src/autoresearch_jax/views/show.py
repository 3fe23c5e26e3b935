"""`show`: one experiment in full."""

from collections.abc import Iterator

from rich.console import Console

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.records import journal, tags
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.entries import STYLES, entries, phases, rests_on
from autoresearch_jax.views.summary import cost_words, count
from autoresearch_jax.views.watch import logs

LOG_LINES = 20
LOG_BYTES = 2**16
Line = tuple[str, str]  # text, style


def show(console: Console, workspace: Workspace, name: str, tag: str | None = None) -> None:
    """Prints description, numbers, diff against its base and log tail of one experiment.

    Raises:
        UserError: there is no such experiment, or nothing has run.
    """
    tag = tags.existing(workspace, tag)
    if tag is None:
        raise UserError(
            "nothing has run here yet, so there is nothing to show: `autoresearch-jax loop`."
        )
    experiments = journal.read(workspace.state_dir(tag))
    one = experiments.find(name)
    lines = [(f"experiment {one.n} of {tag}: {clean(one.description)}", "bold")]
    lines += [(f"{label:<10}{text}", style) for label, text, style in _facts(one, experiments)]
    lines += _tables(one)
    if one.base:
        diff = printable(Candidates(workspace, tag).diff(one.base, one.commit))
        lines += [("", ""), *((line, _diff_style(line)) for line in diff.splitlines())]
    log = workspace.run_dir(tag, one.n) / "run.log"
    if last := logs.tail(logs.text(log, LOG_BYTES, from_end=True), LOG_LINES):
        lines += [("", ""), (f"the last lines of {log}", "bold"), (last, "dim")]
    for text, style in lines:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _facts(one: Experiment, experiments: Experiments) -> Iterator[tuple[str, str, str]]:
    """Label, text and style of all that is one line; what is not known is left out."""
    status, carried = one.status or "undecided", "" if one.of is None else f"experiment {one.of}"
    expected = f"{clean(one.expected)}; it became {_change(one, experiments)}"
    lines = [
        ("commit", one.commit, ""),
        ("base", one.base, ""),
        ("status", status, STYLES.get(status, "")),
        ("agent", clean(one.agent), ""),
        ("expected", expected if one.expected else "", ""),
        ("carries", f"over {carried}" if carried else "", ""),
        ("repaired", f"{count(one.repairs, 'time')} after a crash" if one.repairs else "", ""),
        ("cost", cost_words(experiments.costs.of(one.n)), ""),
        ("reason", clean(one.reason, limit=1000), ""),
        ("decision", clean(one.verdict), ""),
    ]
    for repeat in one.repeats:
        score = repeat.reason if repeat.score is None else f"{repeat.split} {repeat.score:.6f}"
        lines.append(("again", f"{score} (seed {repeat.seed}, {repeat.purpose})", ""))
    for found in experiments.scaled.get(one.n, []):
        scores = f"{found.val_bpb:.6f}, the baseline {found.baseline_bpb:.6f}"
        lines.append(("scale", f"{found.tag}: {scores} at depth {found.depth}", ""))
    lines.append(("note", clean(one.note), "yellow"))
    if spent := phases(one):
        words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
        lines.append(("seconds", f"{words}; together {sum(spent.values()):.1f}", ""))
    return (line for line in lines if line[1])


def _tables(one: Experiment) -> Iterator[Line]:
    """The metrics, and what the score rests on."""
    numbers = {key: f"{value:.6g}" for key, value in one.metrics.items()}
    facts = rests_on(one)
    width = max(map(len, (*numbers, *facts)), default=0) + 2
    for title, table in (("numbers", numbers), ("rests on", facts)):
        if table:
            yield from (("", ""), (title, "bold"))
        for key, value in table.items():
            yield f"  {key:<{width}}{clean(value)}", ""


def _change(one: Experiment, experiments: Experiments) -> str:
    """What became of an experiment, against the best before it."""
    gains = {entry.n: entry.gain for entry in entries(experiments.decided)}
    gain = gains.get(one.n)
    return f"{-gain:+.6f}" if gain is not None else one.status or "nothing yet"


def _diff_style(line: str) -> str:
    if line.startswith(("+++", "---", "diff ", "index ")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
