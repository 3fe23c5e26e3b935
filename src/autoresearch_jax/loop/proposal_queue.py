"""Proposals that wait for their turn, when they are merged into the best of that time."""

from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from autoresearch_jax.agents import constants, search_space
from autoresearch_jax.common import literals, syntax
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.loop.decision import Version, better_as_it_is, carried_over
from autoresearch_jax.loop.open_tag import OpenTag
from autoresearch_jax.records.events import Dropped, Queued
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments


def carried(tag: OpenTag, version: Version) -> Queued:
    """Return a measured experiment as a proposal on another best."""
    e = tag.experiments[version.n]
    return Queued(
        blob=tag.candidates.blob_id(e.commit),
        base=version.base,
        description=e.description,
        expected=e.expected,
        agent=e.agent,
        of=e.n,
        together=version.together,
    )


def turn(tag: OpenTag) -> Queued | None:
    """Return the proposal whose turn it is, if there is one.

    While experiments that were carried over to the best are measured, more of them gather, to be
    measured together after that.
    """
    carried = bool(carried_over(tag.experiments))
    ready = (one for one in tag.experiments.queue if one.of is None or one.together or not carried)
    return next(ready, None)


def pending(experiments: Experiments) -> tuple[int, ...]:
    """Return the experiments that look better and are not in the best yet, so the next may have
    their changes: they wait, or are measured together.
    """
    carried = [one.of for one in experiments.queue if one.of is not None]
    measured = [n for e in carried_over(experiments) for n in e.carries]
    scored = [e for e in experiments.undecided if e.val_bpb is not None and e.of is None]
    waiting = [e.n for e in scored if e.base and not e.without and e.excursion is None]
    return tuple(sorted({*carried, *measured, *waiting}))


def add(tag: OpenTag, queued: Queued) -> None:
    """Record a proposal, which the journal keeps until its turn comes."""
    assert queued.ask is not None
    copy = _copy(tag, queued.ask)  # no ref names the blob, so `git gc --prune=now` would drop it
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(tag.candidates.stored(queued.blob))
    tag.journal.append(queued)


def _copy(tag: OpenTag, ask: int) -> Path:
    return tag.ask_dir(ask) / "answer.py"


def changes(tag: OpenTag, base: str, blob: str) -> str:
    """Describe what a train.py changes, for an agent that did not describe it."""
    old = constants.read(tag.candidates.show(base))
    new = constants.read(literals.readable(tag.candidates.stored(blob)))
    if old.code == new.code:
        changed = {name: v for name, v in new.values.items() if v != old.values[name]}
        if changed:
            return search_space.describe(old.values, changed)
    added, removed = tag.candidates.lines_changed(base, blob)
    return f"lines added: {added}, removed: {removed}"


def take(tag: OpenTag, queued: Queued) -> Queued | None:
    """Return a proposal on the present best, merged with it if it was made on an earlier one.

    One that is carried over takes all others along that may be carried over with it and change
    other lines. Returns None if the proposal cannot be merged, or if the result is nothing new. It
    is then recorded as dropped.
    """
    best = tag.experiments.best
    assert best is not None
    if queued.excursion is not None:
        if (best.finished or 0.0) <= queued.time:
            best = tag.experiments.by_commit(queued.base) or best
        else:  # something was kept since, so it is tried there
            queued = structs.replace(queued, excursion=None)
    queued, *others = _group(tag, queued)
    found, why = _on_best(tag, queued, best)
    together: tuple[int, ...] = ()
    if found is not None and others:
        found, together = _joined(tag, found, queued, others, best)
    elif found is None and queued.of is not None:
        # A measured program that is better than the best as it is must not be lost to a merge.
        better = better_as_it_is(tag.experiments, tag.experiments[queued.of], best)
        found = None if better is None else tag.candidates.blob(better.commit)
    if found is None:
        tag.view.say(f"     dropped, because {why}: {queued.description}")
        tag.journal.append(Dropped(ask=queued.ask, of=queued.of, reason=why))
        return None
    blob = tag.candidates.store(found)  # the repository may have dropped it
    queued = structs.replace(queued, blob=blob, together=together)
    if together:
        agents = sorted({tag.experiments[n].agent for n in together})
        queued = structs.replace(queued, agent=", ".join(agents), expected="")
    if queued.base == best.commit:
        return queued
    if queued.of is None:
        tag.view.say(f"     carried over to the train.py of experiment {best.n}")
    return structs.replace(queued, base=best.commit, refused="", compiled={})


def described(tag: OpenTag, queued: Queued) -> str:
    """Return the description of a proposal that was taken."""
    experiments = tag.experiments
    on = experiments.by_commit(queued.base)
    if queued.of is None or on is None:
        return queued.description
    carried = queued.together or (queued.of,)
    first, *others = [origin for n in carried for origin in experiments.origins(experiments[n])]
    more = f", and {len(others)} more" if others else ""
    *most, last = map(str, carried)
    names = f"experiments {', '.join(most)} and {last}" if most else f"experiment {last}"
    return f"{first.description}{more} ({names} on top of {on.n})"


def _group(tag: OpenTag, queued: Queued) -> list[Queued]:
    """Return a proposal with all that may be carried over together, the largest gain first."""
    experiments = tag.experiments

    def gain(of: int) -> float:
        e = experiments[of]
        base = experiments.by_commit(e.base)
        before, after = None if base is None else base.mean_bpb, e.mean_bpb
        return 0.0 if before is None or after is None else before - after

    alike = [one for one in experiments.queue if one.together == queued.together]
    group = [(-gain(one.of), one.of, one) for one in alike if one.of is not None]
    return [queued] if queued.of is None else [one for *_, one in sorted(group)]


def _joined(
    tag: OpenTag, source: bytes, first: Queued, others: Sequence[Queued], best: Experiment
) -> tuple[bytes, tuple[int, ...]]:
    """Return a train.py with what others change besides, and the experiments whose changes it has.

    There are no such experiments if it is only the first one.
    """
    merged_source, numbers = source, [first.of]
    for one in others:
        theirs = _source(tag, one)
        if theirs is None:
            continue
        found, _ = merged(tag, merged_source, tag.candidates.blob(one.base), theirs, best.n)
        if found is not None and found != merged_source:
            merged_source = found
            numbers.append(one.of)
    known = tag.experiments.same_program(syntax.meaning(merged_source), running=True)
    if len(numbers) == 1 or known is not None:
        return source, ()
    return merged_source, tuple(n for n in numbers if n is not None)


def _on_best(tag: OpenTag, queued: Queued, best: Experiment) -> tuple[bytes | None, str]:
    """Return a proposal's train.py on the present best; or None, and why there is none."""
    source, why = _source(tag, queued), ""
    if source is None:
        return None, "its train.py is no longer in the repository"
    experiments = tag.experiments
    if queued.base != best.commit:
        ours, base = (tag.candidates.blob(one) for one in (best.commit, queued.base))
        source, why = merged(tag, ours, base, source, best.n)
    if source is not None:
        same = experiments.same_program(syntax.meaning(source), running=True)
        family = [] if queued.of is None else experiments.family(experiments[queued.of])
        if same is None or same.n in {one.n for one in family}:
            return source, ""
        why = f"it is experiment {same.n}"
    return None, why


def _source(tag: OpenTag, queued: Queued) -> bytes | None:
    """Return the train.py of a proposal as it was queued."""
    try:
        return tag.candidates.stored(queued.blob)
    except GitError:  # `git gc --prune=now` between two loops
        copy = None if queued.ask is None else _copy(tag, queued.ask)
        return copy.read_bytes() if copy is not None and copy.is_file() else None


def merged(
    tag: OpenTag, ours: bytes, base: bytes, theirs: bytes, n: int
) -> tuple[bytes | None, str]:
    """Return a train.py, `ours`, with the changes from `base` to `theirs`; or None, and why.

    `n` is the number of the experiment that is merged with.
    """
    found = tag.candidates.merge(ours, base, theirs)
    if found is None:
        return None, f"it conflicts with experiment {n}"
    if broken := syntax.unparsable(found) or syntax.misleading(found, ours):
        return None, f"merged with experiment {n} it cannot be used ({broken})"
    return found, ""
