"""What happened under a tag: its experiments, and the questions about them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from msgspec import structs

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import events
from autoresearch_jax.records.costs import PERSON, Costs
from autoresearch_jax.records.events import Outcome, Purpose, Queued, Status
from autoresearch_jax.records.experiment import Experiment, Lesson, UnusedAnswer, is_leak
from autoresearch_jax.records.families import Families
from autoresearch_jax.records.requests import Kind

DIGITS = 9  # of the number of an experiment, at most
_SPANNING = (events.Proposed, events.Trained, events.Decided)  # the events in a span


class Experiments:
    """The experiments of a tag by number, including the undecided ones.

    Each event is applied once, in the order of the journal, by a caller that holds the journal's
    lock. Any thread may ask meanwhile, because an experiment that was returned never changes.
    """

    def __init__(self, history: Iterable[events.Event] = ()) -> None:
        self.first: events.Began | None = None  # it records what the scores of the tag rest on
        self.began: events.Began | None = None  # the last command that started
        self.loop: events.Began | None = None  # the last loop that started
        self.ended: events.Ended | None = None  # how that one ended; None: not yet, or killed
        self.learned = ""  # the tag that it learned from last, and how much
        self.latest = 0.0  # Unix time of the last event
        # Of each command that ran experiments: its start, its last event about one, its workers.
        self.spans: list[tuple[float, float, int]] = []
        self.audit: events.Audited | None = None  # the last one
        self.pruned: events.Pruned | None = None  # the last one
        self.scaled: dict[int, list[events.Scaled]] = {}  # by experiment
        self.restored: set[int] = set()  # the user's experiments whose command has finished
        self.next_ask = 0  # the number of the next question to an agent
        self.costs = Costs()
        # The latest decided experiments if they crashed, since a command began or a control ran.
        self.crashes: tuple[Experiment, ...] = ()
        # Experiments that the scorer refused for a leak, once for each time, since a loop began
        # with another program.md.
        self.leaks: tuple[int, ...] = ()
        self.requests: set[str] = set()  # the ids of those that were taken
        self.hints: dict[int, events.Steered] = {}  # that agents read, by number
        self.paused: events.Steered | None = None  # since when, and by whom
        self.stop: events.Steered | None = None  # who has stopped the last command
        self.lessons: list[Lesson] = []  # of agents, in the order in which they were measured
        self._all: dict[int, Experiment] = {}
        self._decided: list[int] = []
        self._kept: list[int] = []
        self._undecided: dict[int, None] = {}
        self._by_commit: dict[str, int] = {}
        self._families = Families()
        self._queue: dict[tuple[int | None, int | None], Queued] = {}
        self._asked: dict[int, events.Asked] = {}  # by their numbers
        self._hints = 0  # so far
        self._dropped: set[int] = set()  # the origins of what a person has taken back
        self._asks: dict[int, list[int]] = {}  # the questions that an experiment answers
        self._unused: dict[int, UnusedAnswer] = {}  # by their numbers
        self._audited_repeats: dict[int, int] = {}  # how many there were at the last audit
        for event in history:
            self.apply(event)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Experiment]:
        return iter(tuple(self._all.values()))

    def __getitem__(self, n: int) -> Experiment:
        return self._all[n] if n >= 0 else list(self)[n]

    # -------------------------------------------------------------------------------- questions

    @property
    def best(self) -> Experiment | None:
        """The experiment that was kept last. The branch points to it."""
        return self._all[self._kept[-1]] if self._kept else None

    @property
    def baseline(self) -> Experiment | None:
        """The experiment that was kept first. The limits of all others come from it."""
        return self._all[self._kept[0]] if self._kept else None

    @property
    def kept(self) -> list[Experiment]:
        return [self._all[n] for n in tuple(self._kept)]

    @property
    def decided(self) -> list[Experiment]:
        """The decided experiments, in the order of their decisions, not of their numbers."""
        return [self._all[n] for n in tuple(self._decided)]

    @property
    def undecided(self) -> list[Experiment]:
        return [self._all[n] for n in tuple(self._undecided)]

    @property
    def queue(self) -> list[Queued]:
        """The waiting proposals, the oldest first: a person's, then measured ones, then others."""
        return sorted(self._queue.values(), key=lambda one: (one.agent != PERSON, one.of is None))

    def find(self, name: str) -> Experiment:
        """Return the experiment with that number or that start of a commit. Raises UserError."""
        number = int(name) if name.isdecimal() and len(name) <= DIGITS else None
        by_number = [one for one in self if one.n == number]
        by_commit = [one for one in self if len(name) >= 4 and one.commit.startswith(name.lower())]
        found = by_number or by_commit
        if len(found) == 1:
            return found[0]
        if found:
            commits = ", ".join(one.commit[:12] for one in found)
            raise UserError(f"{name!r} fits {len(found)} commits: {commits}. Type more characters.")
        numbers = f"numbers go from 0 to {len(self) - 1}" if len(self) else "nothing has run yet"
        raise UserError(
            f"there is no experiment {name!r}: {numbers}; `autoresearch-jax results` lists them."
        )

    def by_commit(self, commit: str) -> Experiment | None:
        """Return the experiment of a commit, which may be an attempt before a repair."""
        n = self._by_commit.get(commit)
        return None if n is None else self._all[n]

    def origins(self, e: Experiment) -> list[Experiment]:
        """Return the experiments as which the proposals of one were measured first."""
        return [self._all[n] for n in self._families.origins(e.n)]

    def parts(self, e: Experiment) -> list[Experiment]:
        """Return the experiments that one carries over together; none if it is not several."""
        return [self._all[n] for n in e.parts]

    def based_on(self, commit: str) -> list[Experiment]:
        """Return the experiments that change a commit."""
        return [self._all[n] for n in self._families.based_on(commit)]

    def family(self, e: Experiment) -> list[Experiment]:
        """Return all experiments that measure the same proposal, or the same several together."""
        return [self._all[n] for n in self._families.of(e.n)]

    def same_program(self, meaning: str, running: bool = False) -> Experiment | None:
        """Return the experiment that has scored a program already (`syntax.meaning`).

        With `running`, it may also be an undecided one.
        """
        alike = [e for e in self if meaning and e.program == meaning]
        # A program that was discarded for another reason than its score may be tried again.
        known = [e for e in alike if e.scored == Outcome.OK and e.status and not e.reason]
        known += [e for e in alike if running and e.status is None]
        return known[0] if known else None

    def unused(self, n: int | None = None) -> list[UnusedAnswer]:
        """Return the answers that were of no use, for experiment `n` or for all."""
        found = tuple(self._unused.values())
        return [one for one in found if n is None or one.n == n]

    def lessons_of(self, n: int) -> list[str]:
        """Return what the agents of an experiment wrote down, also before it was measured."""
        answers = (self._asked[ask] for ask in self._asks.get(n, ()) if ask in self._asked)
        return [text for answer in answers for text in answer.lessons]

    def runs_since_audit(self, n: int, split: str) -> int:
        """Return how many runs of an experiment an audit has that is not recorded yet."""
        repeats = self._all[n].repeats[self._audited_repeats.get(n, 0) :]
        fresh = [one for one in repeats if one.purpose == Purpose.AUDIT and one.split == split]
        return sum(one.score is not None for one in fresh)

    # ---------------------------------------------------------------------------------- events

    def apply(self, event: events.Event) -> None:
        """Apply the next event of the journal."""
        self.costs.add(event)
        before = self.latest
        if not events.is_from_a_person(event):
            self.latest = max(before, event.time)
        if isinstance(event, _SPANNING) and self.spans:
            began, until, workers = self.spans[-1]
            self.spans[-1] = (began, max(until, event.time), workers)
        match event:
            # A match tries its cases in this order, so the most frequent come first.
            case events.Trained() | events.Scored() | events.Repeated() | events.Repaired() if (
                event.n in self._all
            ):
                if isinstance(event, events.Repaired):
                    self._by_commit[event.commit] = event.n
                    self._asks[event.n] += [] if event.ask is None else [event.ask]
                self._all[event.n] = _changed(self._all[event.n], event)
                if is_leak(event.reason) and not self._families.is_part(event.n, self.leaks):
                    self.leaks = (*self.leaks, event.n)
            case events.Decided() if event.n in self._all:
                self._decide(event)
            case events.Proposed():
                for of in event.together or (event.of,):
                    self._queue.pop((event.ask, of), None)
                self._by_commit[event.commit] = event.n
                fields = structs.asdict(event)  # an experiment's, under the same names
                e = self._all[event.n] = Experiment(started=fields.pop("time"), **fields)
                self._undecided[e.n] = None
                self._families.add(e)
                self._all[e.n] = structs.replace(e, parts=self._families.parts(e.n))
                self._asks[event.n] = [] if event.ask is None else [event.ask]
            case events.Asked():
                self.next_ask = max(self.next_ask, event.ask + 1)
                self._asked[event.ask] = event
                if event.trouble not in ("", "abandoned"):
                    self._not_used(event.ask, event.reason)
            case Queued():
                if event.ask is not None:
                    self.next_ask = max(self.next_ask, event.ask + 1)
                self._queue[event.ask, event.of] = event
                self.requests |= {event.request} - {""}
            case events.Began():
                self.first = self.first or event
                self.began, self.crashes, self.stop = event, (), None
                self.learned = event.learned or self.learned
                if event.kind != "verify":
                    self.spans.append((event.time, event.time, event.workers or 1))
                for e in self.undecided:
                    paused = e.paused + max(0.0, event.time - before)
                    self._all[e.n] = structs.replace(e, paused=paused)
                if event.kind == "loop":
                    if self.loop is None or self.loop.program != event.program:
                        self.leaks = ()
                    self.loop, self.ended = event, None
            case events.Ended():
                self.ended = event
            case events.Steered():
                self._steer(event)
            case events.TakenBack():
                self._take_back(event)
            case events.Dropped():
                queued = self._queue.pop((event.ask, event.of), None)
                if event.ask is not None:
                    self._not_used(event.ask, event.reason)
                if queued is not None and queued.request and queued.ask is not None:
                    unused = UnusedAnswer(queued.ask, len(self), PERSON, event.reason)
                    self._unused[queued.ask] = unused
            case events.Audited():
                self.audit = event
                self._audited_repeats = {e.n: len(e.repeats) for e in self._all.values()}
            case events.Pruned():
                self.pruned = event
            case events.Control():
                self.crashes = ()
            case events.Restored():
                self.restored.add(event.n)
            case events.Scaled():
                self.scaled.setdefault(event.n, []).append(event)
            case events.Interfered(seed=None) if event.n in self._all:
                e = self._all[event.n]
                proposing = {k: v for k, v in e.metrics.items() if k == "agent_seconds"}
                self._all[event.n] = structs.replace(
                    e,
                    interruptions=e.interruptions + 1,
                    metrics=e.metrics if e.outcome is None else proposing,
                    outcome=None,
                    scored=None,
                    val_bpb=None,
                )

    def _steer(self, event: events.Steered) -> None:
        self.requests.add(event.request)
        match event.kind:
            case Kind.HINT:
                self._hints += 1
                self.hints = {**self.hints, self._hints: event}  # others read it meanwhile
            case Kind.WITHDRAW:
                gone = [*self.hints] if event.n is None else [event.n]
                self.hints = {n: one for n, one in self.hints.items() if n not in gone}
            case Kind.PAUSE:
                self.paused = event
            case Kind.RESUME:
                self.paused = None
            case Kind.STOP | Kind.STOP_NOW:
                self.stop = event

    def _take_back(self, event: events.TakenBack) -> None:
        self.requests.add(event.request)
        self._dropped.update(self._families.origins(event.n))
        why = f"taken back by {event.by}"
        for n in (event.n, *event.others):
            self._all[n] = structs.replace(
                self._all[n], status=Status.DISCARD, verdict=why, taken_back=why
            )
            why = f"experiment {event.n} was taken back, and this is proposed again without it"
        gone = {event.n, *event.others}
        self._kept = [n for n in self._kept if n not in gone]
        self.lessons = [
            replace(one, status=Status.DISCARD) if one.n in gone else one for one in self.lessons
        ]
        if self.audit is not None and self.audit.best in gone:
            self.audit = None
        if self.pruned is not None and self.pruned.n in gone:
            self.pruned = None
        for key in [key for key in self._queue if key[1] is not None and self._is_dropped(key[1])]:
            del self._queue[key]
        for queued in event.queued:
            self._queue[queued.ask, queued.of] = queued

    def _is_dropped(self, n: int) -> bool:
        """Whether an experiment measures a proposal that was taken back, on any best."""
        return not self._dropped.isdisjoint(self._families.origins(n))

    def holds_dropped(self, e: Experiment) -> bool:
        """Whether a train.py has a change that was taken back, its own or one of its bases."""
        at: Experiment | None = e if self._dropped else None
        while at is not None:
            if self._is_dropped(at.n):
                return True
            at = self.by_commit(at.base)
        return False

    def _not_used(self, ask: int, reason: str) -> None:
        asked = self._asked.get(ask)
        if asked is not None:
            if ask not in self._unused:
                self.lessons += [Lesson(text) for text in asked.lessons]
            self._unused[ask] = UnusedAnswer(ask, asked.n, asked.agent, reason)

    def _decide(self, event: events.Decided) -> None:
        best = self.best
        e = self._all[event.n] = structs.replace(
            self._all[event.n],
            status=event.status,
            reason=event.reason,
            verdict=event.verdict,
            passed=event.passed,
            finished=event.time,
            place=len(self._decided),
        )
        self._decided.append(e.n)
        self._undecided.pop(e.n, None)
        # What was learned with a proposal is worth what its last form is.
        kept = e.status == Status.KEEP
        measured = self._families.origins(e.n) if kept else (e.n,)
        if texts := [text for n in measured for text in self.lessons_of(n)]:
            mean, before = e.mean_bpb, best.mean_bpb if best else None
            change = None if mean is None or before is None else mean - before
            self.lessons += [Lesson(text, e.n, e.status, change) for text in texts]
        if e.status == Status.KEEP:
            self._kept.append(e.n)
        self.crashes = (*self.crashes, e) if e.status == Status.CRASH else ()
        for queued in event.queued:
            self._queue[queued.ask, queued.of] = queued


def _changed(
    e: Experiment, event: events.Repaired | events.Trained | events.Scored | events.Repeated
) -> Experiment:
    match event:
        case events.Repaired():
            return structs.replace(
                e,
                commit=event.commit,
                program=event.program,
                ideas=event.ideas,
                description=event.description,
                repairs=e.repairs + 1,
                was=event.was,
                repair_ask=event.ask,
                refused="",
                outcome=None,
                scored=None,
                reason="",
                note="",
                disturbed="",
                interruptions=0,
            )
        case events.Trained():
            metrics = e.metrics | event.metrics
            peak_mb = metrics.get("peak_vram_mb")
            return structs.replace(
                e,
                outcome=event.outcome,
                reason=event.reason,
                metrics=metrics,
                memory_gb=None if peak_mb is None else peak_mb / 1024,
                provenance=event.provenance,
                note=event.note,
                disturbed=event.disturbed,
                left=event.left,
                scored=None,
                val_bpb=None,
            )
        case events.Scored():
            return structs.replace(
                e,
                scored=event.outcome,
                reason=event.reason,
                metrics=e.metrics | event.metrics,
                val_bpb=event.metrics.get("val_bpb") if event.outcome == Outcome.OK else None,
            )
        case events.Repeated():
            return structs.replace(e, repeats=(*e.repeats, event))
