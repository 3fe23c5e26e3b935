"""The records that a bundle rests on: which are taken along, and what they say when read again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec import structs

from autoresearch_jax.bundles.format import Refused
from autoresearch_jax.common.text import clean
from autoresearch_jax.records import events, journal
from autoresearch_jax.records.events import Audited, Began, Event, Scaled
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments

MOST_LINES = 20_000
MOST_EXPERIMENTS = 3  # it, what it changes, and the baseline
ABOUT_ONE = (
    *(events.Proposed, events.Repaired, events.Interfered, events.Trained, events.Scored),
    *(events.Decided, events.Verified, events.Repeated, events.Scaled),
)
BEGAN = ("kind", "fingerprint", "policy", "time")  # what is taken along of a command's start
MACHINE = "machine"  # in the provenance of a training on a cluster: its name


@dataclass(frozen=True)
class Evidence:
    """What the records of a bundle say."""

    experiment: Experiment
    base: Experiment | None  # that it changes; None: it is a baseline
    began: Began
    audit: Audited | None  # of it and its baseline
    scaled: tuple[Scaled, ...]
    experiments: Experiments  # it, its base and the baseline, with their repeats

    @property
    def change(self) -> float | None:
        """Its val_bpb minus that of its base, in bits per byte."""
        base = None if self.base is None else self.base.val_bpb
        own = self.experiment.val_bpb
        return None if own is None or base is None else own - base

    @property
    def device(self) -> str:
        """The devices in words."""
        known = self.began.fingerprint
        words = f"{known.get('device count', '?')} x {known.get('device', '?')}"
        return clean(words, 80)


def taken(lines: Iterable[bytes], experiments: Experiments, e: Experiment) -> Iterator[bytes]:
    """Yield the lines of a journal that a bundle of an experiment rests on.

    They are as they were written, but without the names of machines and what else a session says of
    the sender. Each ends with a line end.
    """
    numbers = {one.n for one in (e, experiments.by_commit(e.base), experiments.baseline) if one}
    began = False
    for line in lines:
        event = journal.unseal(line)
        if isinstance(event, Began) and not began:
            began = True
            kept = {name: getattr(event, name) for name in BEGAN}
            yield journal.seal(Began(**kept))
        elif _is_about(event, numbers, e.n):
            shared = _without_machine(event)
            yield line + b"\n" if shared is event else journal.seal(shared)


def _is_about(event: Event, numbers: set[int], n: int) -> bool:
    if isinstance(event, Audited):
        return event.best == n and event.baseline in numbers
    return isinstance(event, ABOUT_ONE) and event.n in numbers


def _without_machine(event: Event) -> Event:
    if isinstance(event, events.Trained) and MACHINE in event.provenance:
        left = {k: v for k, v in event.provenance.items() if k != MACHINE}
        return structs.replace(event, provenance=left)
    return event


def read(records: bytes, n: int, commit: str, base: str) -> Evidence:
    """Return what the records of a bundle say of experiment `n`. Raises Refused."""
    lines = records.split(b"\n")
    if lines.pop() or not lines or len(lines) > MOST_LINES:
        raise Refused("altered-records", f"it has {len(lines)} records, the last one torn")
    found, numbers = Experiments(), set[int]()
    began: Began | None = None
    for at, line in enumerate(lines, start=1):
        try:
            event = journal.unseal(line)
        except (ValueError, RecursionError) as error:
            why = f"record {at} is damaged ({clean(str(error))})"
            raise Refused("altered-records", why) from None
        if isinstance(event, Began) and began is None and at == 1:
            began = event
        elif not isinstance(event, (*ABOUT_ONE, Audited)):
            raise Refused("altered-records", f"record {at} is of a kind that no bundle has")
        elif isinstance(event, events.Proposed):
            if event.n in numbers or len(numbers) >= MOST_EXPERIMENTS:
                raise Refused("altered-records", f"record {at} proposes one more experiment")
            numbers.add(event.n)
            # Of proposals that are not in a bundle nothing can be said.
            event = structs.replace(event, of=None, together=(), ask=None, excursion=None)
        elif isinstance(event, events.Decided):
            event = structs.replace(event, queued=())
        elif isinstance(event, events.Repaired):
            event = structs.replace(event, ask=None)
        if isinstance(event, Audited):
            known = event.best == n
        else:
            known = isinstance(event, Began) or event.n in numbers
        if not known:
            raise Refused("altered-records", f"record {at} is of an experiment without others")
        try:
            if why := journal.implausible(event):
                raise ValueError(why)
            found.apply(event)
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:
            why = f"record {at} is impossible ({clean(str(error))})"
            raise Refused("altered-records", why) from None
    if began is None or n not in numbers:
        raise Refused("altered-records", f"they say nothing of experiment {n}")
    e = found[n]
    if e.commit != commit or e.base != base:
        raise Refused("altered-records", f"they say another commit of experiment {n}")
    return Evidence(
        experiment=e,
        base=found.by_commit(base) if base else None,
        began=began,
        audit=found.audit,
        scaled=tuple(found.scaled.get(n, ())),
        experiments=found,
    )
