"""Proposals that wait for their turn, and are carried over to what is the best by then."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoresearch_jax import source
from autoresearch_jax.journal import Record
from autoresearch_jax.session import Session


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


def carried_over(session: Session, draft: Draft) -> Draft | None:
    """The draft on the present best, by a three-way merge; None, and dropped, if that fails."""
    best = session.best
    assert best is not None
    if draft.base == best.commit:
        return draft
    merged = session.ratchet.merge(best.commit, draft.base, draft.blob)
    why = f"it conflicts with experiment {best.n}" if merged is None else _useless(session, merged)
    if merged is None or why:
        session.view.say(f"     not proposed, since {why}: {draft.description}")
        session.journal.append("dropped", ask=draft.ask, reason=why, time=time.time())
        return None
    session.view.say(f"     carried over to the train.py of experiment {best.n}")
    blob = session.ratchet.store(merged)
    return dataclasses.replace(draft, blob=blob, base=best.commit, refused="", compiled={})


def _useless(session: Session, merged: bytes) -> str:
    """Why a merged train.py is no proposal, or ""."""
    if broken := source.unparsable(merged):
        return f"merged with the best it is no Python ({broken})"
    if (same := session.same_as(merged)) is not None:
        return f"merged with the best it is experiment {same.n}"
    return ""
