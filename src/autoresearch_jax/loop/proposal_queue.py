"""Proposals that wait for their turn, and are carried over to what is the best by then."""

from pathlib import Path

from msgspec import structs

from autoresearch_jax.agents import readings, search_space
from autoresearch_jax.common import syntax
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.loop.decision import Version, better_as_it_is
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records.events import Dropped, Queued
from autoresearch_jax.records.experiment import Experiment


def carried(tag: OpenTag, version: Version) -> Queued:
    """A measured experiment as a proposal on another best."""
    e = tag.experiments[version.n]
    return Queued(
        blob=tag.candidates.blob_id(e.commit),
        base=version.base,
        description=e.description,
        expected=e.expected,
        agent=e.agent,
        of=e.n,
    )


def add(tag: OpenTag, queued: Queued) -> None:
    """Records a proposal, which is taken from the journal when its turn comes."""
    assert queued.ask is not None
    kept = _answer(tag, queued.ask)  # no ref names the blob: `git gc --prune=now` would drop it
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(tag.candidates.stored(queued.blob))
    tag.journal.append(queued)


def _answer(tag: OpenTag, ask: int) -> Path:
    return tag.ask_dir(ask) / "answer.py"


def changes(tag: OpenTag, base: str, blob: str) -> str:
    """What a train.py changes, for an agent that has not said it."""
    old = readings.read(tag.candidates.show(base))
    new = readings.read(tag.candidates.stored(blob).decode(errors="replace"))
    if old.rest == new.rest:
        changed = {name: v for name, v in new.values.items() if v != old.values[name]}
        if changed:
            return search_space.describe(old.values, changed)
    added, removed = tag.candidates.lines_changed(base, blob)
    return f"lines added: {added}, removed: {removed}"


def take(tag: OpenTag, queued: Queued) -> Queued | None:
    """A proposal as it is on the present best: merged with it, where that is another one by now.

    None where it is of no use. Then that is recorded, and it waits no more.
    """
    best = tag.experiments.best
    assert best is not None
    found, why = _on_best(tag, queued, best)
    if found is None:
        tag.view.say(f"     not proposed, since {why}: {queued.description}")
        tag.journal.append(Dropped(ask=queued.ask, of=queued.of, reason=why))
        return None
    if queued.base != best.commit and queued.of is None:
        tag.view.say(f"     carried over to the train.py of experiment {best.n}")
    blob = tag.candidates.store(found)  # it may have been dropped from the repository
    if queued.base == best.commit:
        return structs.replace(queued, blob=blob)
    return structs.replace(queued, blob=blob, base=best.commit, refused="", compiled={})


def _on_best(tag: OpenTag, queued: Queued, best: Experiment) -> tuple[bytes | None, str]:
    """The train.py of a proposal on the present best; or None, and why it cannot be proposed."""
    source, why = _source(tag, queued), ""
    if source is None:
        return None, "its train.py is not in the repository any more"
    if queued.base != best.commit:
        source, why = _merged(tag, queued, best, source)
    if source is not None:
        same = tag.experiments.same_program(syntax.meaning(source), running=True)
        if same is None or (queued.of is not None and _same_origin(tag, same.n, queued.of)):
            return source, ""
        why = f"it is experiment {same.n}"
    # What was measured, and is better than the best as it is, is not lost to a merge.
    measured = None if queued.of is None else tag.experiments[queued.of]
    better = measured and better_as_it_is(tag.experiments, measured, best)
    return (tag.candidates.blob(better.commit), "") if better else (None, why)


def _source(tag: OpenTag, queued: Queued) -> bytes | None:
    """The train.py of a proposal as it was queued."""
    try:
        return tag.candidates.stored(queued.blob)
    except GitError:  # `git gc --prune=now` between two loops
        kept = None if queued.ask is None else _answer(tag, queued.ask)
        return kept.read_bytes() if kept is not None and kept.is_file() else None


def _same_origin(tag: OpenTag, one: int, other: int) -> bool:
    """Whether two experiments are one proposal, carried over or not."""
    found = tag.experiments
    return found.origin(found[one]).n == found.origin(found[other]).n


def _merged(
    tag: OpenTag, queued: Queued, best: Experiment, source: bytes
) -> tuple[bytes | None, str]:
    """A proposal's changes in the train.py of the best; or None, and why they do not fit there."""
    merged = tag.candidates.merge(best.commit, queued.base, source)
    if merged is None:
        return None, f"it conflicts with experiment {best.n}"
    if broken := syntax.unparsable(merged):
        return None, f"merged with experiment {best.n} it is not Python ({broken})"
    return merged, ""
