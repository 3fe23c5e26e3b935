"""Prompts for agents: program.md, the best train.py, the results, and the task.

`prompt.md.j2` has the text. A prompt contains train.py although the file is also in the agent's
folder, so that the recorded prompt is complete and a model without tools needs nothing else.
Descriptions, reasons and logs come from agents or from their programs. They enter a prompt as
bounded data: between double quotes, which `clean` removes from text, or after `> `.
"""

import ast
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from autoresearch_jax.common import front_matter
from autoresearch_jax.common.text import clean, without_escapes
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment

LIMIT = 128_000  # characters of any prompt, however long the history: these and 46,000 for the rest
PROGRAM_LIMIT = 32_000
SOURCE_LIMIT = 50_000
DESC_LIMIT = 2_000  # of --desc
LAST = 20  # latest experiments, on one line each
TOP = 10  # best experiments before these
RUNNING = 16  # experiments without a result yet
LOG_LINES = 60
LOG_LINE_LIMIT = 300
LOG_LIMIT = 8_000
FENCE_LIMIT = 12  # backticks around train.py
STAGNATION = 8  # experiments without a gain before the prompt asks for other directions


@dataclass(frozen=True)
class Brief:
    """The input of a prompt."""

    program: str  # program.md; its front matter is for the harness and is omitted
    history: Sequence[Experiment]  # of the tag, oldest first; status None: in training
    best: Experiment
    source: str  # the text of the train.py that the proposal changes
    budget_s: float  # seconds of training
    base: Experiment | None = None  # the experiment of that file, if it is not the best
    desc: str = ""  # the text of --desc
    device: str = ""  # such as "1 x NVIDIA H100 80GB HBM3"
    memory_gib: float | None = None  # what a training may use of each device
    seconds_left: float | None = None  # until --max-hours
    usd_left: float | None = None
    experiments_left: int | None = None
    # Unusable answers to this request: (description, why).
    rejected: Sequence[tuple[str, str]] = ()
    waiting: Sequence[str] = ()  # descriptions of queued proposals
    hints: Sequence[str] = ()  # of the user, while the loop runs
    others: int = 0  # number of other agents at work on a proposal now
    folder: str = ""  # beside train.py, with what the experiments have shown (research.py)
    research: str = ""  # the same in short


def repair(brief: Brief, *, description: str, reason: str, log: str) -> str:
    """Return the prompt to repair a crashed proposal, at most LIMIT characters.

    Its train.py is in the agent's folder and not repeated; `log` is the log of its training.
    """
    return build(brief, {"description": description, "reason": reason, "log": quoted(log)})


def build(brief: Brief, crash: Mapping[str, str] | None = None) -> str:
    """Return the prompt for a proposal, or to repair a `crash`, at most LIMIT characters."""
    decided = [e for e in brief.history if e.status]
    before = decided[:-LAST]
    scored = [e for e in before if e.val_bpb is not None and e.status != Status.CRASH]
    kept = [place for place, e in enumerate(decided, 1) if e.status == Status.KEEP]
    source = _source(brief.source)
    return render(
        "prompt.md.j2",
        brief=brief,
        best=brief.best,
        base=brief.base or brief.best,
        crash=crash,
        program=_program(brief.program),
        kit=kit_reference(),
        source=source,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", source)), default=0)),
        desc=_bounded(brief.desc.strip(), DESC_LIMIT, "the text is too long"),
        decided=decided,
        kept=len(kept),
        crashes=[e for e in decided if e.status == Status.CRASH],
        without_gain=len(decided) - kept[-1] if kept else 0,
        stagnation=STAGNATION,
        running=[e for e in brief.history if e.status is None][-RUNNING:],
        top=sorted(scored, key=lambda e: (e.mean_bpb, e.n))[:TOP],
        last=decided[-LAST:],
        changes=changes(brief.history),
    )


def render(template: str, **values: Any) -> str:
    """Return the text of a template in this folder."""
    return _templates().get_template(template).render(values)


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"clean": clean, "number": _number, "gib": _gib}
    return templates


def _program(program: str) -> str:
    with contextlib.suppress(ValueError):  # an editor may be writing it; the settings report it
        program = front_matter.split(program)[1]
    return _bounded(program.strip(), PROGRAM_LIMIT - 200, "program.md is too long")


@cache
def kit_reference() -> str:
    """Return signatures and docstrings of what `kit` exports, ordered as in its `__init__.py`.

    The harness must not import JAX, so the source text is parsed, not imported.
    """
    stubs = [
        _without_code(node)
        for export in _parse("autoresearch_jax.kit.__init__")
        if isinstance(export, ast.ImportFrom) and export.module
        for alias in export.names
        for node in _parse(export.module)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == alias.name
    ]
    return "\n\n".join(ast.unparse(ast.fix_missing_locations(stub)) for stub in stubs)


def _parse(module: str) -> list[ast.stmt]:
    path = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")).body


def _without_code(node: ast.FunctionDef | ast.ClassDef) -> ast.stmt:
    docstring: list[ast.stmt] = node.body[:1] if ast.get_docstring(node) else []
    methods = [
        _without_code(one)
        for one in node.body
        if isinstance(node, ast.ClassDef)
        and isinstance(one, ast.FunctionDef)
        and (one.name == "__init__" or not one.name.startswith("_"))
    ]
    node.decorator_list = []
    node.body = [*docstring, *methods] or [ast.Expr(ast.Constant(...))]
    return node


def _source(source: str) -> str:
    text = _bounded(source.rstrip(), SOURCE_LIMIT - 400, "the file in your folder is complete")
    text = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
    return re.sub(f"`{{{FENCE_LIMIT},}}", "`" * (FENCE_LIMIT - 1), text)


def changes(history: Sequence[Experiment]) -> Mapping[int, float]:
    """Return by number each mean score minus the best kept score before it; negative is better."""
    found, best = {}, None
    for e in history:
        if (mean := e.mean_bpb) is None or e.status is None:
            continue
        if best is not None:
            found[e.n] = mean - best
        if e.status == Status.KEEP:
            best = mean if best is None else min(best, mean)
    return found


def quoted(log: str, limit: int = LOG_LIMIT) -> str:
    """Return the end of a log, each line after `> `; at most `limit` characters, LOG_LINES lines.

    Of a line that was overwritten, such as progress, only the last version remains.
    """
    lines: list[str] = []
    room = limit
    for whole in reversed(log[-20 * limit :].split("\n")):
        text = without_escapes(whole.rstrip("\r").rpartition("\r")[2])
        shown = clean(text, LOG_LINE_LIMIT)
        if not shown:
            continue
        indent = min(len(text) - len(text.lstrip(" ")), 12)
        lines.append(f"> {' ' * indent}{shown}")
        room -= len(lines[-1]) + 1
        if room < 0 or len(lines) > LOG_LINES:
            lines.pop()
            break
    return "\n".join(reversed(lines))


def _bounded(text: str, limit: int, why: str) -> str:
    """Return the text; if it is longer than `limit`, without its middle."""
    if len(text) <= limit:
        return text
    half = (limit - 100) // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters omitted: {why}]\n{text[-half:]}"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if abs(value) < 1e6 else f"{value:.3g}"


def _gib(value: float) -> str:
    return f"{_number(value, '.1f')} GiB"
