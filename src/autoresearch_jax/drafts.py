"""Proposals that wait for their turn, and are carried over to what is the best by then."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch_jax.agents import ranges, readings
from autoresearch_jax.journal import Experiment, Record
from autoresearch_jax.session import Session
from autoresearch_jax.source import unparsable
from autoresearch_jax.workspace import GitError


@dataclass(frozen=True)
class Draft:
    """A train.py that an agent left, before it is an experiment."""

    ask: int  # the question that it answers: asks/<ask> has its prompt
    blob: str  # of its train.py
    base: str  # the commit that it started from
    description: str
    expected: str
    agent: str
    refused: str = ""  # why it cannot run, by the gate
    compiled: Mapping[str, float] = field(default_factory=dict)  # the gate's metrics of it


def waiting(records: Sequence[Record]) -> Draft | None:
    """The oldest draft that was neither proposed nor dropped."""
    found: dict[int, Record] = {}
    for record in records:
        if record["step"] == "drafted":
            found[record["ask"]] = record
        elif record["step"] in ("proposed", "dropped"):
            found.pop(record.get("ask", -1), None)
    if not found:
        return None
    oldest = next(iter(found.values()))
    return Draft(**{field.name: oldest[field.name] for field in dataclasses.fields(Draft)})


def record(session: Session, draft: Draft) -> None:
    """Writes a draft into the journal, from which it is taken when its turn comes."""
    kept = _answer(session, draft)  # no ref names the blob: `git gc --prune=now` would drop it
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(session.ratchet.stored(draft.blob))
    session.journal.append("drafted", **dataclasses.asdict(draft), time=time.time())


def _answer(session: Session, draft: Draft) -> Path:
    return session.ask_dir(draft.ask) / "answer.py"


def changes(session: Session, base: str, blob: str) -> str:
    """What a train.py changes, for an agent that has not said it."""
    old = readings.read(session.ratchet.show(base))
    new = readings.read(session.ratchet.stored(blob).decode(errors="replace"))
    if old.rest == new.rest:
        changed = {name: v for name, v in new.values.items() if v != old.values[name]}
        if changed:
            return ranges.describe(old.values, changed)
    added, removed = session.ratchet.lines_changed(base, blob)
    return f"lines added: {added}, removed: {removed}"


def carried_over(session: Session, draft: Draft) -> Draft | None:
    """The draft on the present best, by a three-way merge; None, and dropped, if it is no use."""
    best = session.best
    assert best is not None
    source, why = _on_best(session, draft, best)
    if why:
        session.view.say(f"     not proposed, since {why}: {draft.description}")
        session.journal.append("dropped", ask=draft.ask, reason=why, time=time.time())
        return None
    blob = session.ratchet.store(source)  # it may have been dropped from the repository
    if draft.base == best.commit:
        return dataclasses.replace(draft, blob=blob)
    session.view.say(f"     carried over to the train.py of experiment {best.n}")
    return dataclasses.replace(draft, blob=blob, base=best.commit, refused="", compiled={})


def _on_best(session: Session, draft: Draft, best: Experiment) -> tuple[bytes, str]:
    """The draft's train.py on the present best, and why it cannot be proposed, or ""."""
    try:
        source = session.ratchet.stored(draft.blob)
    except GitError:  # `git gc --prune=now` between two loops
        kept = _answer(session, draft)
        if not kept.is_file():
            return b"", "its train.py is not in the repository any more"
        source = kept.read_bytes()
    if draft.base != best.commit:
        merged = session.ratchet.merge(best.commit, draft.base, source)
        if merged is None:
            return b"", f"it conflicts with experiment {best.n}"
        source = merged
        if broken := unparsable(source):
            return b"", f"merged with experiment {best.n} it is no Python ({broken})"
    same = session.same_as(source)
    return source, f"it is experiment {same.n}" if same else ""
