"""A static page of bundles whose scores were confirmed, by device, budget and data.

It has no code and loads nothing: a page with a table for each class, and one for each bundle with
what it changed and what was found out about it. All text of a bundle is escaped.
"""

import contextlib
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_jax.bundles.evidence import Evidence
from autoresearch_jax.bundles.reading import Bundle
from autoresearch_jax.bundles.verdict import State, Verdict
from autoresearch_jax.common import files, literals
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.loop import statistics
from autoresearch_jax.repo import git
from autoresearch_jax.views.entries import rests_on
from autoresearch_jax.views.watch import diffs
from autoresearch_jax.views.watch.report_file import VERSION, content_hash
from autoresearch_jax.views.watch.web import PAGE, STYLE, TEMPLATES

INDEX, OWN_STYLE = "index.html", "leaderboard.css"
MADE_BY = b'<body class="board">'  # is in each page
OF_ONE = re.compile(r"[0-9a-f]{32}\.html")
SIGNS = {"+": "plus", "-": "minus", "@": "at", " ": ""}
SOURCE_LIMIT = 1 << 20  # characters of a train.py that are shown


@dataclass(frozen=True)
class Standing:
    """A bundle whose score is confirmed."""

    bundle: Bundle
    evidence: Evidence
    verdict: Verdict

    @property
    def page(self) -> str:
        return f"{self.bundle.digest[:32]}.html"

    @property
    def words(self) -> str:
        return clean(self.evidence.experiment.title) or "no description"

    @property
    def score(self) -> float:
        """The score by which it stands: as it was computed here."""
        assert self.verdict.val_bpb is not None
        return self.verdict.val_bpb

    @property
    def data(self) -> str:
        """The data in words."""
        data = self.bundle.manifest.data
        sizes = {
            "rows of {:,} tokens": data.constants.get("MAX_SEQ_LEN"),
            "vocabulary {:,}": data.constants.get("VOCAB_SIZE"),
            "{:,} tokens scored": data.constants.get("EVAL_TOKENS"),
        }
        words = [form.format(size) for form, size in sizes.items() if size is not None]
        return ", ".join([*words, f"data {data.fingerprint}"])

    @property
    def group(self) -> tuple[str, int, str]:
        """What scores must have in common to be compared."""
        return self.evidence.device, self.bundle.manifest.budget_s, self.data

    def is_of(self, other: "Standing") -> bool:
        """Whether another one has the same function and arrays, and would stand beside this."""
        mine, theirs = (one.evidence.experiment.left for one in (self, other))
        return (self.group, mine) == (other.group, theirs)

    @property
    def facts(self) -> dict[str, str]:
        claim, e = self.bundle.manifest, self.evidence.experiment
        known = {
            "experiment": f"{claim.n} of {claim.tag}",
            "commit": claim.commit,
            "text, as its sender says": clean(claim.data.source, 80) or "files of the sender",
            "agent": clean(e.agent),
            "ideas": ", ".join(map(clean, e.ideas)),
            "file": clean(self.bundle.path.name),
            "SHA-256 of its manifest": self.bundle.digest,
            **{clean(name, 60): clean(value) for name, value in rests_on(e).items()},
        }
        return {name: value for name, value in known.items() if value}


@dataclass(frozen=True)
class Other:
    """A file that is not on the board, and why."""

    name: str
    state: str
    why: str

    def __post_init__(self) -> None:
        for name in ("name", "state", "why"):  # of files that anyone may have made
            object.__setattr__(self, name, clean(getattr(self, name), 1000))


def write(folder: Path, standings: Iterable[Standing], others: Sequence[Other]) -> Path:
    """Write the pages into a folder; return the path of the first one. Raises OSError."""
    by_group: dict[tuple[str, int, str], list[Standing]] = {}
    for one in sorted(standings, key=lambda one: (one.score, one.bundle.digest)):
        by_group.setdefault(one.group, []).append(one)
    folder.mkdir(parents=True, exist_ok=True)
    pages = {INDEX: _page("leaderboard.html.j2", groups=sorted(by_group.items()), others=others)}
    for found in by_group.values():
        for place, one in enumerate(found, start=1):
            pages[one.page] = page(one, place, len(found))
    for name, text in reversed(pages.items()):  # the index after those that it links
        files.write_text(folder / name, text)
    for path in folder.iterdir():
        if OF_ONE.fullmatch(path.name) and path.name not in pages:
            with contextlib.suppress(OSError):
                path.unlink()  # of a bundle that is not on the board any more
    return folder / INDEX


def page(one: Standing, place: int, count: int) -> str:
    """Return the page of a bundle, the text of which anyone may have made."""
    return _page("standing.html.j2", **_of_one(one, place, count))


def _page(template: str, **values: Any) -> str:
    style = "".join((PAGE / name).read_text(encoding="utf-8") for name in (STYLE, OWN_STYLE))
    policy = (
        f"default-src 'none'; style-src {content_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    made = {"version": VERSION, "made": time.strftime("%Y-%m-%d", time.gmtime())}
    return TEMPLATES.get_template(template).render(style=style, policy=policy, **made, **values)


def _of_one(one: Standing, place: int, count: int) -> dict[str, Any]:
    e, audit = one.evidence.experiment, one.evidence.audit
    noise = statistics.noise(one.evidence.experiments)
    lines, cut = diffs.lines(_diff(one.bundle))
    return {
        "one": one,
        "place": f"{place} of {count}",
        "title": one.words,
        "confirmed": [f.text for f in one.verdict.findings if f.state is State.CONFIRMED],
        "computed": _computed(one.verdict),
        "open": [f.text for f in one.verdict.findings if f.state is State.OPEN],
        "audit": "" if audit is None else statistics.audit_words(audit),
        "runs": e.scores,
        "noise": "" if noise is None else noise.words,
        "scale": statistics.scale_lines(list(one.evidence.scaled)) if one.evidence.scaled else [],
        "lines": [(SIGNS[sign], old, new, words) for sign, old, new, words in lines],
        "cut": cut,
        "source": printable(literals.readable(one.bundle.train_py)[:SOURCE_LIMIT]),
    }


def _computed(verdict: Verdict) -> str:
    """Return where and when a score was computed; "" if that is not known."""
    if not verdict.device:
        return ""
    day = time.strftime("%Y-%m-%d", time.gmtime(verdict.at))
    return f"on a {clean(verdict.device, 80)}, {day}"


def _diff(bundle: Bundle) -> str:
    """Return what a bundle changed as a unified diff; "" for a baseline.

    Git makes it, because Python's difflib may take hours for a file that was made for that.
    """
    if bundle.base_py is None:
        return ""
    names = ("before.py", "train.py")
    with tempfile.TemporaryDirectory() as folder:
        for name, source in zip(names, (bundle.base_py, bundle.train_py), strict=True):
            (Path(folder) / name).write_bytes(source)
        plain = ("--no-index", "--no-color", "--no-ext-diff", "--no-textconv", "--text")
        done = git.run(Path(folder), "diff", *plain, "--", *names)
    return literals.readable(done.output, like=bundle.train_py)
