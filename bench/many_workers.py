"""What many workers find in an hour, and how much of it they train again, with a simulated clock.

    uv run bench/many_workers.py [--workers N ...] [--hours H] [--seeds S] [--policy strict|confirm]
                                 [--noise X] [--landscape log|clashes|finite] [--json]

The journal's events, `decide`, the queue of proposals and its merges are the loop's own, and work
is handed out as the scheduler does it; git, the processes and the clock are simulated. A training
takes 330 s, give or take 10%, and agents answer at once. A train.py is 400 lines of which each has
a true effect on the score; a proposal changes one line of the best that no proposal in flight
changes (`--blind`: any line). A score is the sum of the effects plus normal noise.

- `log`: the effect of a new line against the old one is drawn anew, as in bench/keep_policy.py from
  the mixture under which the original's public log is most likely. It never gets harder.
- `clashes`: the same, and each new line needs another one, at random, to stay as it is: with a
  change of that one, 5% cost 0.005 bits per byte, and 1% crash.
- `finite`: each line has four other contents in all, with effects against the first one from the
  same mixture. So the gains are used up.

JSON, for each number of workers: `trainings_per_hour`; `again`: the share of trainings that are not
the first one of a proposal; `keeps` and `gains`, an hour: kept experiments, and lines that they
change for the better; `worse`: the share of kept lines that are truly worse than those they
replace; `progress_per_hour`: the true score of the baseline minus that of the best at the end,
mean, bits per byte; `relative`: to one worker's, with its 95% interval (bootstrap over the seeds).
"""

import concurrent.futures
import hashlib
import heapq
import json
import math
import multiprocessing
import os
import random
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
from msgspec import structs
from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.loop import decision, proposal_queue
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.decision import Decision, MeasureAgain, decide
from autoresearch_jax.loop.statistics import NOISE_RUNS
from autoresearch_jax.records import events
from autoresearch_jax.records.events import Outcome, Purpose, Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from bench.keep_policy import draw

WORKERS = (1, 4, 16, 64, 256)
SECONDS = 330.0  # of a training with its start-up and its score
SPREAD = 0.1  # of that, at most
LINES = 400
CONTENTS = 4  # of a line in the finite landscape, besides the first
MANY = 64  # workers: with fewer there are more seeds, so that all train about as much
LIMITS = (0.025, 0.975)  # of an interval
CLASH, CRASH, COST = 0.05, 0.01, 0.005

NEW = hasattr(decision, "Wait")  # else it is the version that carried over one by one

Contents = tuple[int, ...]  # of the lines of a train.py


class Landscape:
    """Contents of lines, by number, and what they do to the score."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.dice = name, random.Random(f"{name}/{seed}")
        mixture = draw(np.random.default_rng([seed, 7]), (1, 100_000), "log")
        self._drawn = iter(mixture[0].tolist())
        self.level = [0.0] * LINES  # of each content, against the first one of its line
        self.needs: dict[int, tuple[int, int, float]] = {}  # line, content, cost if it is another
        self._left = {
            at: [self._new(0.0) for _ in range(CONTENTS)] if name == "finite" else []
            for at in range(LINES)
        }

    def _new(self, level: float) -> int:
        self.level.append(level + next(self._drawn))
        return len(self.level) - 1

    def change(self, contents: Contents, busy: set[int]) -> Contents | None:
        """A train.py with another content of one line; None: there is none that was not tried."""
        if self.name == "finite":
            free = [at for at in range(LINES) if self._left[at]]
            free = [at for at in free if at not in busy] or free
            if not free:
                return None
            at = self.dice.choice(free)
            new = self._left[at].pop(self.dice.randrange(len(self._left[at])))
        else:
            at = self.dice.choice([at for at in range(LINES) if at not in busy] or range(LINES))
            new = self._new(self.level[contents[at]])
            chance, other = self.dice.random(), self.dice.randrange(LINES)
            if self.name == "clashes" and chance < CLASH + CRASH and other != at:
                self.needs[new] = other, contents[other], math.inf if chance < CRASH else COST
        return (*contents[:at], new, *contents[at + 1 :])

    def truth(self, contents: Contents) -> float:
        """The score without noise, infinite for a crash."""
        score = sum(self.level[one] for one in contents)
        for one in contents:
            if one in self.needs and contents[self.needs[one][0]] != self.needs[one][1]:
                score += self.needs[one][2]
        return 1.0 + score


def source_of(contents: Contents) -> bytes:
    return b"".join(b"P%d = %d\n" % pair for pair in enumerate(contents))


@lru_cache(maxsize=4096)
def contents_of(source: bytes) -> Contents:
    return tuple(int(line.rpartition(b" ")[2]) for line in source.splitlines())


@lru_cache(maxsize=16384)
def changed_lines(old: bytes, new: bytes) -> frozenset[int]:
    pairs = zip(contents_of(old), contents_of(new), strict=True)
    return frozenset(at for at, (mine, theirs) in enumerate(pairs) if mine != theirs)


class Simulation:
    """A tag and its workers. The loop's code takes it for a tag, and for a tag's candidates."""

    def __init__(self, workers, hours, seed, landscape, policy, noise, blind) -> None:
        self.config = LoopConfig(policy=policy, plateau=0)
        self.experiments = Experiments()
        self.journal, self.candidates = SimpleNamespace(append=self.append), self
        self.view = SimpleNamespace(say=lambda text: None)
        self.landscape = Landscape(landscape, seed)
        self.dice, self.noise, self.blind = random.Random(seed), noise, blind
        self.now, self.end, self.workers = 0.0, hours * 3600, workers
        self.sources: dict[str, bytes] = {}  # by commit and by blob
        self.queue: list[tuple[float, int, object]] = []  # of what runs: (end, number, what)
        self.arrived: list[int] = []  # as the scheduler has them
        self.wanted: list[MeasureAgain] = []
        self.again: set[int] = set()
        self.waits: dict[int, tuple[Any, int]] = {}
        self.counts: Counter[str] = Counter()

    def append(self, event) -> None:
        self.experiments.apply(structs.replace(event, time=self.now))

    # ------------------------------------------------------------------------------------ git

    def store(self, source: bytes) -> str:
        blob = hashlib.sha1(source).hexdigest()
        self.sources[blob] = source
        return blob

    def stored(self, blob: str) -> bytes:
        return self.sources[blob]

    def blob(self, commit: str) -> bytes:
        return self.sources[commit]

    def blob_id(self, commit: str) -> str:
        return self.store(self.sources[commit])

    def merge(self, ours: bytes, base: bytes, theirs: bytes) -> bytes | None:
        lines = []
        for mine, old, new in zip(*(one.splitlines() for one in (ours, base, theirs)), strict=True):
            if old not in (mine, new) and mine != new:
                return None
            lines.append(new if mine == old else mine)
        return b"\n".join(lines) + b"\n"

    # ------------------------------------------------------------------------------ the loop

    def run(self) -> dict:
        """Run for the hours, and return what came of it."""
        first = self.propose(source_of(tuple(range(LINES))), base="")
        self.measure(first)
        self.append(events.Decided(n=0, status=Status.KEEP))
        for _ in range(NOISE_RUNS - 1 if self.config.policy == "confirm" else 0):
            self.repeat(MeasureAgain(0, "", Purpose.NOISE))
        for number in range(self.workers):
            self.start(number)
        while self.queue and self.queue[0][0] <= self.end:
            self.now, number, what = heapq.heappop(self.queue)
            self.counts["trainings"] += 1
            if isinstance(what, MeasureAgain):
                self.repeat(what)
                self.again.discard(what.n)
            else:
                self.counts["first"] += self.experiments[what].of is None
                self.measure(what)
                self.arrived.append(what)
            self.decide()
            self.start(number)
        return self.found()

    def start(self, number: int) -> None:
        """Give a worker its next training, in the scheduler's order."""
        what = self.next()
        if what is not None:
            took = SECONDS * (1 + self.dice.uniform(-SPREAD, SPREAD))
            heapq.heappush(self.queue, (self.now + took, number, what))

    def next(self) -> object:
        best = self.experiments.best
        while self.wanted:
            again = self.wanted.pop(0)
            if self.experiments[again.n].status is None or again.n == best.n:
                self.again.add(again.n)
                return again
            self.decide()
        while (turn := self.turn()) is not None:
            found = proposal_queue.take(self, turn)
            if found is not None:
                more = {"together": found.together} if NEW else {}
                return self.propose(self.stored(found.blob), found.base, of=found.of, **more)
        contents = contents_of(self.blob(best.commit))
        changed = self.landscape.change(contents, set() if self.blind else self.busy(best))
        return None if changed is None else self.propose(source_of(changed), best.commit)

    def turn(self):
        return proposal_queue.turn(self) if NEW else next(iter(self.experiments.queue), None)

    def busy(self, best: Experiment) -> set[int]:
        """The lines that undecided and waiting experiments change."""
        found, here = self.experiments, self.blob(best.commit)
        waiting = [found[one.of].commit for one in found.queue if one.of is not None]
        commits = (*waiting, *(e.commit for e in found.undecided))
        return set().union(*(changed_lines(here, self.blob(one)) for one in commits))

    def propose(self, source: bytes, base: str, **fields) -> int:
        n = len(self.experiments)
        commit = f"{n:040x}"
        self.sources[commit] = source
        program = hashlib.sha1(source).hexdigest()
        self.append(events.Proposed(n=n, commit=commit, base=base, program=program, **fields))
        return n

    def score(self, n: int) -> float:
        truth = self.landscape.truth(contents_of(self.blob(self.experiments[n].commit)))
        return truth + self.dice.gauss(0, self.noise)

    def measure(self, n: int) -> None:
        score = self.score(n)
        outcome = Outcome.OK if math.isfinite(score) else Outcome.CRASH
        self.append(events.Trained(n=n, outcome=outcome, reason="" if score < 9 else "crash"))
        if outcome == Outcome.OK:
            self.append(events.Scored(n=n, outcome=outcome, metrics={"val_bpb": score}))

    def repeat(self, again: MeasureAgain) -> None:
        metrics = {"val_bpb": self.score(again.n)}
        fields = {"purpose": again.purpose, "split": "val", "outcome": Outcome.OK}
        seed = 43 + len(self.experiments[again.n].repeats)
        self.append(events.Repeated(n=again.n, seed=seed, metrics=metrics, **fields))

    def decide(self) -> None:
        """Decide what can be decided, in the order of arrival, as the scheduler does it."""
        at = 0
        while at < len(self.arrived):
            n = self.arrived[at]
            if self.still_waits(n):
                at += 1
                continue
            found = decide(self.experiments, self.experiments[n], self.config)
            self.want(found)
            if NEW and self.workers > 1 and getattr(found, "purpose", "") == Purpose.DRIFT:
                found = decide(self.experiments, self.experiments[n], self.config, drift=False)
                self.want(found)
            if isinstance(found, Decision):
                self.record(n, found)
                self.arrived.remove(n)
                at = 0
                continue
            at += 1
            self.waits[n] = found, self.experiments.best.n

    def still_waits(self, n: int) -> bool:
        found, best = self.waits.get(n, (None, -1))
        if not NEW or found is None or self.experiments.best.n != best:
            return False
        if isinstance(found, decision.Wait):
            return self.experiments[found.n].status is None
        return found.n in (*self.again, *(one.n for one in self.wanted))

    def want(self, found: object) -> None:
        """Have an experiment measured again, unless it is already."""
        known = (*self.again, *(one.n for one in self.wanted))
        if isinstance(found, MeasureAgain) and found.n not in known:
            self.wanted.append(found)

    def record(self, n: int, found: Decision) -> None:
        before = contents_of(self.blob(self.experiments.best.commit))
        lives_on = found.lives_on if NEW else [one for one in [found.lives_on] if one is not None]
        queued = tuple(proposal_queue.carried(self, one) for one in lives_on)
        self.append(events.Decided(n=n, status=found.status, reason=found.reason, queued=queued))
        if found.status == Status.KEEP:
            self.counts["keeps"] += 1
            after, level = contents_of(self.blob(self.experiments[n].commit)), self.landscape.level
            effects = [level[b] - level[a] for a, b in zip(before, after, strict=True) if a != b]
            self.counts["better"] += sum(one < 0 for one in effects)
            self.counts["worse"] += sum(one > 0 for one in effects)

    def found(self) -> dict:
        best = contents_of(self.blob(self.experiments.best.commit))
        return {
            "workers": self.workers,
            **{name: self.counts[name] for name in ("trainings", "first", "keeps", "better")},
            "worse": self.counts["worse"],
            "progress": 1.0 - self.landscape.truth(best),
        }


def simulate(*arguments) -> dict:
    return Simulation(*arguments).run()


def rows(workers, hours, seeds, **case) -> list[dict]:
    """What each number of workers found, relative to the first one."""
    counts = [seeds * max(1, MANY // one) for one in workers]
    jobs = [
        (one, hours, seed, *case.values())
        for one, count in zip(workers, counts, strict=True)
        for seed in range(count)
    ]
    jobs.sort(key=lambda job: -job[0])  # the longest ones first
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        done = list(pool.map(simulate, *zip(*jobs, strict=True)))
    dice, values = np.random.default_rng(0), []
    alone = resampled(dice, [one for one in done if one["workers"] == workers[0]])
    for count in workers:
        group = [one for one in done if one["workers"] == count]
        mean = {name: fmean(one[name] for one in group) for name in group[0]}
        ratios = resampled(dice, group) / alone
        first = fmean(one["progress"] for one in done if one["workers"] == workers[0])
        lines = mean["better"] + mean["worse"]
        values.append(
            {
                "workers": count,
                "trainings_per_hour": round(mean["trainings"] / hours, 1),
                "again": round(1 - mean["first"] / mean["trainings"], 4),
                "keeps": round(mean["keeps"] / hours, 2),
                "gains": round(mean["better"] / hours, 2),
                "worse": round(mean["worse"] / lines, 4) if lines else 0.0,
                "progress_per_hour": round(mean["progress"] / hours, 6),
                "relative": round(mean["progress"] / first, 2),
                "relative_95": [round(float(one), 2) for one in np.quantile(ratios, LIMITS)],
            }
        )
    return values


def resampled(dice: np.random.Generator, group: list[dict]) -> np.ndarray:
    """The mean progress of the seeds, drawn again with replacement, many times."""
    progress = np.array([one["progress"] for one in group])
    return progress[dice.integers(0, len(group), (2000, len(group)))].mean(1)


@click.command(help=__doc__.partition("\n")[0])
@click.option("--workers", type=int, multiple=True, default=WORKERS, show_default=True)
@click.option("--hours", default=8.0, show_default=True)
@click.option("--seeds", default=4, show_default=True, help="More for fewer than 64 workers.")
@click.option("--landscape", type=click.Choice(["log", "clashes", "finite"]), default="log")
@click.option("--policy", type=click.Choice(["strict", "confirm"]), default="strict")
@click.option("--noise", default=0.0002, show_default=True, help="Of a score, bits per byte.")
@click.option("--blind", is_flag=True, help="Proposals do not know what is in flight.")
@click.option("--json", "as_json", is_flag=True)
def main(workers, hours, seeds, landscape, policy, noise, blind, as_json):
    case = {"landscape": landscape, "policy": policy, "noise": noise, "blind": blind}
    found = rows(workers, hours, seeds, **case)
    if as_json:
        click.echo(json.dumps({**case, "hours": hours, "seeds": seeds, "rows": found}))
        return
    title = f"{landscape}, {policy}, noise {noise:g}, {hours:g} hours, {seeds} seeds"
    table = Table(title=title, title_justify="left")
    for name in found[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in found:
        table.add_row(*(str(one) for one in row.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
