"""Near misses, tried together where the best has not improved for long.

A greedy search stops where no single change helps. Two changes that each cost a little may gain
together, and several that each gain less than the noise may gain enough. So after a number of quiet
decisions (the setting `plateau`) the loop tries up to eight near misses of the best in one file,
and then the halves of them, each with every second one, that are not single changes. These are
experiments like others: they change the best, and the policy decides. Near misses that were tried
together are not used again for the same best.

bench/plateau.py compares this with a greedy loop, with lines of trials that start at a near miss,
which gained less, and with lines that start at an earlier keep, which gained nothing.

Everything follows from the experiments: a restart goes on where the loop was.
"""

from collections.abc import Iterator, Sequence

from autoresearch_jax.common import syntax
from autoresearch_jax.common.errors import GitError
from autoresearch_jax.loop import proposal_queue
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments

AGENT = "combine"
MOST = 8  # near misses that are tried together
CANDIDATES = 3 * MOST  # of which they are taken, as some change the same lines


def propose(session: Session) -> Experiment | None:
    """Make near misses together the next experiment, if their turn has come."""
    best = session.experiments.best
    # A person's proposal goes first, and what was measured already and scored lower than the best.
    carried = any(one.request or one.of is not None for one in session.experiments.queue)
    if best is None or carried or session.excursion() is not None:
        return None
    for near in due(session.experiments, best, session.config.plateau):
        source, numbers = _merged(session, best, near)
        known = session.experiments.same_program(syntax.meaning(source), running=True)
        if len(numbers) < 2 or known is not None:
            continue
        words = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
        return session.propose(
            session.candidates.store(source),
            base=best.commit,  # another worker may have found a better one meanwhile
            description=f"near misses {words} together",
            agent=AGENT,
            combines=numbers,
        )
    return None


def _merged(
    session: Session, best: Experiment, near: Sequence[Experiment]
) -> tuple[bytes, tuple[int, ...]]:
    """Return the best train.py with near misses merged into it, and which those are."""
    before = source = session.candidates.blob(best.commit)
    numbers: list[int] = []
    for e in near[:CANDIDATES]:
        try:
            theirs = session.candidates.blob(e.commit)
        except GitError:  # its commit is gone
            continue
        found, _ = proposal_queue.merged(session, source, before, theirs, best.n)
        # Not one that changes the same lines as a nearer one, or nothing besides.
        if found is not None and found != source:
            source = found
            numbers.append(e.n)
        if len(numbers) == MOST:
            break
    return source, tuple(numbers)


def due(experiments: Experiments, best: Experiment, quiet: int) -> Iterator[Sequence[Experiment]]:
    """Yield the near misses of the best to try together next, the nearest first.

    Where the first ones do not go together, the next ones count. `quiet` is the number of decisions
    without a keep after which there are any; 0: never.
    """
    if not quiet:
        return
    here = [e for e in experiments if e.base == best.commit and e.excursion is None]
    here = [e for e in here if not e.without]
    waited, whole, halves = 0, None, list[set[int]]()
    used = set[int]()
    for e in here:
        numbers = {*e.combines}
        if not numbers:
            waited += e.status is not None and not e.parts
            continue
        waited = 0
        if numbers <= used:
            halves.append(numbers)
        else:
            whole, halves = e, []
        used |= numbers
    if whole is not None and whole.status is not None and waited < quiet:
        for half in (whole.combines[::2], whole.combines[1::2]):
            if len(half) > 1 and not any(one <= {*half} for one in halves):
                yield [experiments[n] for n in half]
    if waited >= quiet:
        lost = [e for e in here if e.status == Status.DISCARD and not e.reason and not e.several]
        near = [e for e in lost if e.mean_bpb is not None and e.n not in used and not e.taken_back]
        yield sorted(near, key=lambda e: (e.mean_bpb, e.n))
