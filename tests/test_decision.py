"""What becomes of a measured experiment: as a table, and in whatever order experiments arrive."""

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.common import syntax
from autoresearch_jax.loop import near_misses, proposal_queue
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.decision import (
    Decision,
    MeasureAgain,
    TrainAgain,
    Version,
    Wait,
    _compared,
    decide,
)
from autoresearch_jax.loop.policy import Confirm, Measured
from autoresearch_jax.records.events import (
    Decided,
    Interfered,
    Outcome,
    Proposed,
    Purpose,
    Queued,
    Repeated,
    Scored,
    Status,
    Trained,
)
from autoresearch_jax.records.experiments import Experiments
from tests.harness import Notes

STRICT = LoopConfig()


class World:
    """A tag without git and processes: programs are names, scores and merges are drawn."""

    def __init__(self, seed: int = 0, conflicts: float = 0.0, troubles: float = 0.0) -> None:
        self.draw = random.Random(seed)
        self.conflicts = conflicts
        self.troubles = troubles  # how often a training crashes, is refused, or is disturbed
        self.events = []
        self.experiments = Experiments()
        self.journal = SimpleNamespace(append=self.append)
        self.view = Notes()
        self.candidates = self  # of git it takes what stands below
        self.scores: dict[bytes, float] = {}
        self.crashed: set[bytes] = set()
        self.scored: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.sources: dict[str, bytes] = {}  # by commit and by blob

    def append(self, event) -> None:
        self.events.append(event)
        self.experiments.apply(event)

    def restart(self) -> None:
        """A killed process reads the journal again."""
        self.experiments = Experiments(self.events)

    # ------------------------------------------------------------------------------------ git

    def store(self, source: bytes) -> str:
        blob = f"blob of {source.decode()}"
        self.sources[blob] = source
        return blob

    def stored(self, blob: str) -> bytes:
        return self.sources[blob]

    def blob(self, commit: str) -> bytes:
        return self.sources[commit]

    def blob_id(self, commit: str) -> str:
        return self.store(self.blob(commit))

    def merge(self, ours: str, base: str, theirs: bytes) -> bytes | None:
        if self.draw.random() < self.conflicts:
            return None
        return b"P = '%d'\n" % self.draw.randrange(60)  # also one that is known already

    # --------------------------------------------------------------------------- a loop's steps

    def propose(self, source: bytes, base="", of=None, ask=None, together=()) -> int:
        n = len(self.experiments)
        self.sources[f"c{n}"] = source
        program = syntax.meaning(source)
        fields = {"of": of, "ask": ask, "together": together}
        self.append(Proposed(n=n, commit=f"c{n}", base=base, program=program, **fields))
        return n

    def measure(self, n: int, score: float | None = None) -> None:
        source = self.sources[f"c{n}"]
        drawn = self.scores.setdefault(source, round(self.draw.random(), 3))
        score = drawn if score is None else score
        trouble = self.draw.choice(["crash", "late", "refused", "disturbed", "disturbed"])
        if self.draw.random() >= self.troubles or (trouble != "disturbed" and n == 0):
            trouble = ""
        # A program crashes once at most, and leaks always or never. The third training of an
        # experiment is left alone.
        once = {"crash": self.crashed, "late": self.crashed, "refused": self.scored}
        if source in once.get(trouble, ()) or self.experiments[n].interruptions == 2:
            trouble = ""
        trouble = "refused" if source in self.refused else trouble
        lost = self.draw.choice([8.0, 60.0]) if trouble in ("late", "disturbed") else 0.0
        outcome = {"crash": Outcome.CRASH, "late": Outcome.TIMEOUT}.get(trouble, Outcome.OK)
        disturbed, metrics = "others took it" if lost else "", {"crowded_percent": lost}
        self.append(Trained(n=n, outcome=outcome, disturbed=disturbed, metrics=metrics))
        if outcome != Outcome.OK:
            self.crashed.add(source)
        elif trouble == "refused":
            self.refused.add(source)
            self.append(Scored(n=n, outcome=Outcome.REFUSED, reason="later-tokens: it leaks"))
        else:
            self.scored.add(source)
            metrics = {"val_bpb": score * (1 + 0.4 * lost / 100)}
            self.append(Scored(n=n, outcome=Outcome.OK, metrics=metrics))

    def decide(self, n: int, config: LoopConfig = STRICT) -> Decision:
        found = decide(self.experiments, self.experiments[n], config)
        assert isinstance(found, Decision)
        queued = tuple(proposal_queue.carried(self, one) for one in found.lives_on)
        self.append(Decided(n=n, status=found.status, reason=found.reason, queued=queued))
        return found

    def advance(self, n: int) -> bool:
        """Decide an experiment, or do what it needs before; return whether it is decided."""
        if self.experiments[n].outcome is None:
            self.measure(n)
        found = decide(self.experiments, self.experiments[n], STRICT)
        if isinstance(found, Decision):
            self.decide(n)
            return True
        if isinstance(found, TrainAgain):
            self.append(Interfered(n=n, reason=found.reason))
            return False
        if isinstance(found, Wait):
            assert self.experiments[found.n].status is None
            return False
        score = {"val_bpb": self.scores[self.sources[f"c{found.n}"]]}
        seed = 43 + len(self.experiments[found.n].repeats)
        run = {"seed": seed, "purpose": found.purpose, "split": "val", "outcome": Outcome.OK}
        self.append(Repeated(n=found.n, metrics=score, **run))
        return False

    def take(self) -> int | None:
        """The next of the queue as an experiment; None where it is of no use."""
        found = proposal_queue.take(self, proposal_queue.turn(self))
        if found is None:
            return None
        source = self.stored(found.blob)
        return self.propose(source, found.base, found.of, found.ask, found.together)


# ------------------------------------------------------------------------------------- a table


def world(*experiments: tuple[str, float, str], **options) -> World:
    """Experiments as (base, score, status); those without a status are measured and undecided."""
    made = World(**options)
    for n, (base, score, status) in enumerate(experiments):
        made.propose(b"P = 'program %d'\n" % n, base)
        made.measure(n, score)
        if status:
            made.append(Decided(n=n, status=Status(status)))
    return made


@pytest.mark.parametrize(
    ("experiments", "expected"),
    [
        ([("", 1.0, "")], Decision(Status.KEEP)),
        ([("", 1.0, "keep"), ("c0", 0.9, "")], Decision(Status.KEEP)),
        ([("", 1.0, "keep"), ("c0", 1.0, "")], Decision(Status.DISCARD)),
        # Behind the best: what is lower goes on, and so does what is lower than its base.
        (
            [("", 1.0, "keep"), ("c0", 0.9, "keep"), ("c0", 0.8, "")],
            Decision(Status.DISCARD, lives_on=(Version(2, "c0"),)),
        ),
        (
            [("", 1.0, "keep"), ("c0", 0.8, "keep"), ("c0", 0.9, "")],
            Decision(Status.DISCARD, lives_on=(Version(2, "c0"),)),
        ),
        ([("", 1.0, "keep"), ("c0", 0.8, "keep"), ("c0", 1.1, "")], Decision(Status.DISCARD)),
    ],
)
def test_the_strict_policy(experiments, expected):
    made = world(*experiments)
    found = decide(made.experiments, made.experiments[-1], STRICT)
    assert (found.status, found.reason, found.lives_on) == (
        expected.status, expected.reason, expected.lives_on,
    )  # fmt: skip


def test_an_experiment_without_a_score_is_a_crash():
    made = world(("", 1.0, "keep"))
    n = made.propose(b"P = 'x'\n", "c0")
    made.append(Trained(n=n, outcome=Outcome.CRASH, reason="boom"))
    assert decide(made.experiments, made.experiments[n], STRICT) == Decision(Status.CRASH, "boom")


def test_a_repeat_that_fails_makes_a_crash():
    made = world(("", 1.0, "keep"), ("c0", 0.9, ""))
    repeat = {"seed": 43, "purpose": Purpose.DECIDE, "split": "val", "reason": "boom"}
    made.append(Repeated(n=1, outcome=Outcome.TIMEOUT, **repeat))
    found = decide(made.experiments, made.experiments[1], STRICT)
    assert (found.status, found.reason) == (
        Status.CRASH,
        "run again with another seed, it failed: boom",
    )


def test_too_much_memory_is_a_discard_and_for_a_baseline_a_crash():
    config = LoopConfig(max_memory_gb=1.0)
    for before, status in ((0, Status.CRASH), (1, Status.DISCARD)):
        made = world(*[("", 1.0, "keep")] * before)
        n = made.propose(b"P = 'x'\n", "c0" if before else "")
        made.append(Trained(n=n, outcome=Outcome.OK, metrics={"peak_vram_mb": 2048.0}))
        made.append(Scored(n=n, outcome=Outcome.OK, metrics={"val_bpb": 0.5}))
        found = decide(made.experiments, made.experiments[n], config)
        assert (found.status, found.reason) == (
            status, "it used 2.00 GiB of a device, and may use 1",
        )  # fmt: skip


def test_confirm_measures_again_what_is_close():
    config = LoopConfig(policy="confirm")
    made = world(("", 1.0, "keep"), ("c0", 0.97, ""))
    for seed, score in enumerate((1.02, 0.98, 1.01, 0.99), start=43):
        found = {"seed": seed, "purpose": Purpose.NOISE, "split": "val", "outcome": Outcome.OK}
        made.append(Repeated(n=0, metrics={"val_bpb": score}, **found))
    assert isinstance(decide(made.experiments, made.experiments[1], config), MeasureAgain)


def test_what_was_probed_as_if_it_could_not_be_kept_is_measured_again():
    """The best was measured again since, and its mean has risen above the score."""
    made = world(("", 1.0, "keep"))
    seeds = {"purpose": Purpose.NOISE, "split": "val", "outcome": Outcome.OK}
    made.append(Repeated(n=0, seed=43, metrics={"val_bpb": 1.2}, **seeds))
    n = made.propose(b"P = 'x'\n", "c0")
    made.append(Trained(n=n, outcome=Outcome.OK))
    made.append(Scored(n=n, outcome=Outcome.OK, metrics={"val_bpb": 1.05, "probe_pairs": 128.0}))
    again = decide(made.experiments, made.experiments[n], STRICT)
    assert isinstance(again, MeasureAgain)
    assert again.n == n
    metrics = {"val_bpb": 1.06, "probe_pairs": 900.0, "probe_gain": 0.0005}
    again = {"seed": 43, "purpose": Purpose.DECIDE, "split": "val", "outcome": Outcome.OK}
    made.append(Repeated(n=n, metrics=metrics, **again))
    assert made.decide(n).status == Status.KEEP


def test_a_bad_merge_loses_neither_the_first_score_nor_one_in_between():
    """As it happened: the better score was neither the first nor the last of its family."""
    made = world(("", 1.0, "keep"), ("c0", 0.7, "keep"), ("c0", 0.9, ""))
    made.decide(2)  # better than its base: carried over
    second = made.take()
    made.append(Decided(n=made.propose(b"P = 'rival'\n", "c1"), status=Status.DISCARD))
    rival = made.propose(b"P = 'other rival'\n", "c1")
    made.measure(rival, 0.6)
    made.append(Decided(n=rival, status=Status.KEEP))  # as earlier versions did: it waits now
    made.measure(second, 0.3)  # the lowest of all, behind the best
    assert made.decide(second).lives_on == (Version(second, "c1"),)
    third = made.take()
    made.measure(third, 0.8)  # the merge has made it worse
    assert made.decide(third).lives_on == (Version(second, f"c{rival}", (second,)),)
    fourth = made.take()
    assert made.blob(f"c{fourth}") == made.blob(f"c{second}")
    made.measure(fourth, 0.3)
    assert made.decide(fourth).status == Status.KEEP
    assert made.experiments.queue == []


def gathered(*scores: float) -> World:
    """A best of 0.9, and experiments behind it that wait; merges put changes one after another."""
    made = world(("", 1.0, "keep"), ("c0", 0.9, "keep"), *(("c0", one, "") for one in scores))
    made.merge = lambda ours, base, theirs: ours + theirs
    for n in range(2, 2 + len(scores)):
        made.decide(n)
    return made


def test_all_that_waits_is_carried_over_together_the_largest_gain_first():
    made = gathered(0.97, 0.95, 0.96)
    n = made.take()
    e = made.experiments[n]
    assert (e.of, e.together, e.base) == (3, (3, 4, 2), "c1")
    assert made.experiments.queue == []
    assert proposal_queue.pending(made.experiments) == (2, 3, 4)
    # What arrives meanwhile waits: for the decision if it was measured on the best, ...
    rival = made.propose(b"P = 'rival'\n", "c1")
    made.measure(rival, 0.85)
    assert decide(made.experiments, made.experiments[rival], STRICT) == Wait(n)
    worse = made.propose(b"P = 'worse'\n", "c1")
    made.measure(worse, 0.91)
    assert made.decide(worse) == Decision(Status.DISCARD)
    # ... and for its turn if it was measured behind it.
    late = made.propose(b"P = 'late'\n", "c0")
    made.measure(late, 0.94)
    assert made.decide(late).lives_on == (Version(late, "c0"),)
    assert proposal_queue.turn(made) is None
    assert proposal_queue.pending(made.experiments) == (2, 3, 4, rival, late)
    made.restart()
    assert proposal_queue.turn(made) is None
    made.measure(n, 0.7)
    assert made.decide(n) == Decision(Status.KEEP)
    assert made.decide(rival).lives_on == (Version(rival, "c1"),)
    assert made.experiments[made.take()].together == (late, rival)


def test_what_is_not_kept_together_is_tried_in_halves_until_each_is_alone():
    made = gathered(0.97, 0.95, 0.96)
    made.measure(n := made.take(), 1.5)
    first, second = (3, 4), (2,)
    versions = tuple(Version(one, "c0", first) for one in first)
    assert made.decide(n).lives_on == (*versions, Version(2, "c0", second))
    late = made.propose(b"P = 'late'\n", "c0")
    made.measure(late, 0.5)
    made.decide(late)
    # The halves do not wait for each other; what is new waits for both.
    half, rest = made.take(), made.take()
    assert [made.experiments[one].together for one in (half, rest)] == [first, ()]
    assert made.experiments[rest].of == 2
    assert proposal_queue.turn(made) is None
    made.measure(half, 1.4)
    assert [one.together for one in made.decide(half).lives_on] == [(3,), (4,)]
    made.measure(rest, 0.8)
    assert made.decide(rest).status == Status.KEEP
    assert [made.experiments[made.take()].of for _ in range(3)] == [late, 3, 4]


def test_changes_of_the_same_lines_are_not_carried_over_together():
    made = gathered(0.97, 0.95, 0.96)
    made.merge = lambda ours, base, theirs: None if b"program 3" in ours else ours + theirs
    assert made.experiments[made.take()].together == ()
    assert [one.of for one in made.experiments.queue] == [2, 4]


def test_what_scored_lower_alone_than_together_is_proposed_as_it_is():
    made = gathered(0.97, 0.8, 0.96)
    made.measure(n := made.take(), 0.85)
    assert made.decide(n) == Decision(Status.KEEP, lives_on=(Version(3, f"c{n}", (3,)),))
    alone = made.take()
    assert made.blob(f"c{alone}") == made.blob("c3")


def test_what_crashes_together_is_tried_in_halves_too():
    made = gathered(0.97, 0.95)
    n = made.take()
    made.append(Trained(n=n, outcome=Outcome.CRASH, reason="boom"))
    found = made.decide(n)
    assert (found.status, [one.together for one in found.lives_on]) == (Status.CRASH, [(3,), (2,)])


@pytest.mark.parametrize("members", [2, 8, 32])
def test_one_leak_among_several_is_counted_once(members):
    made = gathered(*[0.95 + n / 1000 for n in range(members)])
    leaks = made.sources[f"c{members}"].removesuffix(b"\n")
    refused = 0
    while proposal_queue.turn(made) is not None:
        if (n := made.take()) is None:
            continue
        if leaks in made.blob(f"c{n}"):
            made.refused.add(made.blob(f"c{n}"))
            refused += 1
        made.measure(n, 0.9 - n / 1000)
        made.decide(n)
    assert refused >= 2
    assert len(made.experiments.leaks) == 1
    made.restart()
    assert len(made.experiments.leaks) == 1


def test_what_was_carried_over_together_is_several_on_the_next_best_too():
    made = gathered(0.97, 0.95, 0.96, 0.94)
    made.measure(n := made.take(), 1.5)
    made.decide(n)
    first, second = made.take(), made.take()
    made.measure(first, 0.8)
    made.decide(first)
    made.measure(second, 0.79)
    made.decide(second)
    again = made.experiments[made.take()]
    assert (again.of, again.together) == (second, ())
    assert again.several == made.experiments[second].together != ()


def test_near_misses_are_single_proposals():
    made = gathered(0.97, 0.95, 0.96, 0.94)
    while proposal_queue.turn(made) is not None:
        made.measure(n := made.take(), 1.5 + len(made.experiments) / 100)
        made.decide(n)
    best = made.experiments.best
    assert any(e.parts for e in made.experiments.based_on(best.commit))
    (near,) = near_misses.due(made.experiments, best, 4)
    assert len(near) == 4
    assert not any(e.parts for e in near)
    assert not list(near_misses.due(made.experiments, best, 5))  # only they were quiet decisions


def test_gains_together_say_nothing_of_the_spread_of_one():
    """Of a confirming policy, whose bars follow by how much single proposals looked better."""
    made = gathered(0.97, 0.95)
    made.measure(n := made.take(), 0.1)
    made.append(Decided(n=n, status=Status.KEEP))
    found = _compared(made.experiments, made.experiments[n])
    # The baseline with what changes it, what was kept next, and both gains together.
    assert [one.several for one in found] == [False, False, False, False, True]
    alone = [Measured([1 - n / 100], Status.KEEP) for n in range(9)]
    assert Confirm(0.001).spread(alone) == 3.5
    assert Confirm(0.001).spread([replace(one, several=True) for one in alone]) == 1.0


def test_a_lucky_first_score_does_not_live_on():
    """The first score is below the best's; the mean is above the base's, or below the best's."""
    for again, lives_on in ((1.4, False), (0.6, True)):
        made = world(("", 1.0, "keep"), ("c0", 0.9, "keep"), ("c0", 0.7, ""))
        run = {"seed": 43, "purpose": Purpose.NOISE, "split": "val", "outcome": Outcome.OK}
        made.append(Repeated(n=2, metrics={"val_bpb": again}, **run))
        assert (made.decide(2).lives_on == (Version(2, "c0"),)) == lives_on


def test_the_best_is_run_again_after_25_experiments_or_an_hour_with_ten():
    def asked(decided: int, seconds: float) -> bool:
        made = world(("", 1.0, ""), seed=1)
        made.append(Decided(n=0, status=Status.KEEP, time=1.0))
        run = {"purpose": Purpose.NOISE, "split": "val", "outcome": Outcome.OK, "time": 2.0}
        for seed in range(43, 47):
            made.append(Repeated(n=0, seed=seed, metrics={"val_bpb": 1 + seed / 100}, **run))
        for n in range(1, decided + 1):
            made.propose(b"P = 'program %d'\n" % n, "c0")
            made.measure(n, 2.0)
            at = 2.0 + seconds * n / decided
            made.append(Decided(n=n, status=Status.DISCARD, time=at))
        made.propose(b"P = 'new'\n", "c0")
        made.measure(decided + 1, 2.0)
        found = decide(made.experiments, made.experiments[-1], LoopConfig(policy="confirm"))
        return found == MeasureAgain(0, found.reason, Purpose.DRIFT)

    cases = [(24, 60.0), (25, 60.0), (9, 3600.0), (10, 3500.0), (10, 3600.0)]
    assert [asked(*case) for case in cases] == [False, True, False, False, True]


# ------------------------------------------------------------------------- any order of arrival


def living(made: World) -> dict[int, int]:
    """How many forms of each proposal wait, or are being measured, by its first experiment."""
    found = made.experiments
    waiting = [found[queued.of] for queued in found.queue if queued.of is not None]
    alive = [one.n for e in (*found.undecided, *waiting) for one in found.origins(e)]
    return {n: alive.count(n) for n in alive}


@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 8),
    proposals=st.integers(1, 20),
    conflicts=st.sampled_from([0.0, 0.3, 1.0]),
    kills=st.sampled_from([0.0, 0.2]),
    troubles=st.sampled_from([0.0, 0.5]),
    gathers=st.sampled_from([0.0, 0.9]),  # how often new ones arrive before those carried over
)
def test_no_lower_score_is_lost_whatever_arrives_when(
    seed, workers, proposals, conflicts, kills, troubles, gathers
):
    made = World(seed, conflicts, troubles)
    draw = random.Random(seed + 1)
    made.propose(b"P = 'baseline'\n")
    assert made.advance(0)
    running: list[int] = []
    asked = 0
    for _ in range(5000):
        found = made.experiments
        assert all(count == 1 for count in living(made).values())
        if draw.random() < kills:
            made.restart()
            assert [q.of for q in made.experiments.queue] == [q.of for q in found.queue]
        free = len(running) < workers
        if free and proposal_queue.turn(made):
            n = made.take()
            running += [] if n is None else [n]
        elif free and asked < proposals and (not running or draw.random() < 0.7):
            blob = made.store(b"P = '%d'\n" % draw.randrange(60))
            made.append(Queued(ask=asked, blob=blob, base=found.best.commit))
            asked += 1
        elif running:
            new = [n for n in running if found[n].of is None]
            n = draw.choice(new if new and draw.random() < gathers else running)
            running.remove(n)
            running += [] if made.advance(n) else [n]
        else:
            break
    else:
        raise AssertionError("it does not come to an end")
    # What they score undisturbed: no disturbance decides what is best.
    scores = {e.n: made.scores[made.sources[e.commit]] for e in made.experiments}
    scored = [e for e in made.experiments if e.val_bpb is not None]
    assert scores[made.experiments.best.n] == min(scores[e.n] for e in scored)
    trainings = Counter(one.n for one in made.events if isinstance(one, Trained))
    assert max(trainings.values()) <= 3
