"""Proposals that wait for their turn, and are carried over to what is the best by then."""

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch_jax.agents import readings, search_space
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.common.syntax import unparsable
from autoresearch_jax.records.experiment import Experiment, Record

if TYPE_CHECKING:
    from autoresearch_jax.loop.session import Session


@dataclass(frozen=True)
class Draft:
    """A train.py that waits to be an experiment: an agent left it, or it is one already."""

    ask: int | None  # the question that it answers: asks/<ask> has its prompt
    blob: str  # of its train.py
    base: str  # the commit that it started from
    description: str
    expected: str
    agent: str
    refused: str = ""  # why it cannot run, by the gate
    compiled: Mapping[str, float] = field(default_factory=dict)  # the gate's metrics of it
    of: int | None = None  # the experiment that is carried over to another best


_FIELDS = {field.name for field in dataclasses.fields(Draft)}


class Waiting:
    """What was neither proposed nor dropped: first what was measured already, then the oldest.

    The records are a list that only grows; each is looked at once. Any thread may ask.
    """

    def __init__(self) -> None:
        self._seen = 0  # records
        self._found: dict[tuple[int | None, int | None], Draft] = {}
        self._one = threading.Lock()

    def up_to(self, records: Sequence[Record]) -> list[Draft]:
        with self._one:
            new = records[self._seen :]
            self._seen += len(new)
            for record in new:
                self._add(record)
            return sorted(self._found.values(), key=lambda draft: draft.of is None)

    def _add(self, record: Record) -> None:
        key = (record.get("ask"), record.get("of"))
        if record["step"] == "drafted":
            said = {name: value for name, value in record.items() if name in _FIELDS}
            self._found[key] = Draft(**said)
        elif record["step"] in ("proposed", "dropped"):
            self._found.pop(key, None)


def waiting(records: Sequence[Record]) -> list[Draft]:
    """`Waiting` of these records."""
    return Waiting().up_to(records)


def carry_on(session: "Session", e: Experiment, base: str) -> None:
    """Lets a measured experiment wait for its turn on another best, unless it did already.

    What it changed since the commit `base` is carried over; nothing is where that is the best.
    """
    records, same = session.journal.records, ("drafted", e.n, base)
    if any((one["step"], one.get("of"), one.get("base")) == same for one in records):
        return  # a killed process has recorded it, and not what comes next
    session.journal.append(
        "drafted",
        ask=None,
        blob=session.ratchet.blob_id(e.commit),
        base=base,
        description=e.description,
        expected=e.expected,
        agent=e.agent,
        refused="",
        compiled={},
        of=e.n,
        time=time.time(),
    )


def record(session: "Session", draft: Draft) -> None:
    """Writes a draft into the journal, from which it is taken when its turn comes."""
    assert draft.ask is not None
    kept = _answer(session, draft.ask)  # no ref names the blob: `git gc --prune=now` would drop it
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(session.ratchet.stored(draft.blob))
    session.journal.append("drafted", **dataclasses.asdict(draft), time=time.time())


def _answer(session: "Session", ask: int) -> Path:
    return session.ask_dir(ask) / "answer.py"


def changes(session: "Session", base: str, blob: str) -> str:
    """What a train.py changes, for an agent that has not said it."""
    old = readings.read(session.ratchet.show(base))
    new = readings.read(session.ratchet.stored(blob).decode(errors="replace"))
    if old.rest == new.rest:
        changed = {name: v for name, v in new.values.items() if v != old.values[name]}
        if changed:
            return search_space.describe(old.values, changed)
    added, removed = session.ratchet.lines_changed(base, blob)
    return f"lines added: {added}, removed: {removed}"


def carried_over(session: "Session", draft: Draft) -> Draft | None:
    """The draft on the present best, by a three-way merge; None, and dropped, if it is no use."""
    best = session.best
    assert best is not None
    source, why = _on_best(session, draft, best)
    if why:
        session.view.say(f"     not proposed, since {why}: {draft.description}")
        said = {"ask": draft.ask, "of": draft.of, "reason": why}
        session.journal.append("dropped", **said, time=time.time())
        return None
    blob = session.ratchet.store(source)  # it may have been dropped from the repository
    if draft.base == best.commit:
        return dataclasses.replace(draft, blob=blob)
    if draft.of is None:
        session.view.say(f"     carried over to the train.py of experiment {best.n}")
    return dataclasses.replace(draft, blob=blob, base=best.commit, refused="", compiled={})


def _on_best(session: "Session", draft: Draft, best: Experiment) -> tuple[bytes, str]:
    """The draft's train.py on the present best, and why it cannot be proposed, or ""."""
    try:
        source = session.ratchet.stored(draft.blob)
    except GitError:  # `git gc --prune=now` between two loops
        kept = None if draft.ask is None else _answer(session, draft.ask)
        if kept is None or not kept.is_file():
            return b"", "its train.py is not in the repository any more"
        source = kept.read_bytes()
    if draft.base != best.commit:
        merged, why = _merged(session, draft, best, source)
        if why and not _is_better_as_it_is(session, draft, best):
            return b"", why
        source = source if why else merged
    same = session.same_as(source, running=True)
    if same is None or (draft.of is not None and _same_origin(session, same.n, draft.of)):
        return source, ""
    return source, f"it is experiment {same.n}"


def _same_origin(session: "Session", one: int, other: int) -> bool:
    """Whether two experiments are one proposal, carried over or not."""
    history = session.history
    return session.origin(history[one]).n == session.origin(history[other]).n


def _merged(session: "Session", draft: Draft, best: Experiment, source: bytes) -> tuple[bytes, str]:
    """The draft's changes in the train.py of the best, and why they do not go there, or ""."""
    merged = session.ratchet.merge(best.commit, draft.base, source)
    if merged is None:
        return b"", f"it conflicts with experiment {best.n}"
    if broken := unparsable(merged):
        return b"", f"merged with experiment {best.n} it is no Python ({broken})"
    return merged, ""


def _is_better_as_it_is(session: "Session", draft: Draft, best: Experiment) -> bool:
    """Whether a draft was measured, and its score is lower than the best's."""
    if draft.of is None or best.val_bpb is None:
        return False
    score = session.score_of(session.history[draft.of])
    return score is not None and score < best.val_bpb
