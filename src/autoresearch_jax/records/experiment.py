"""What the journal says of each experiment."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Repeat:
    """One more training of an experiment, with another seed."""

    seed: int
    purpose: str  # evidence.py says which there are
    split: str  # that was scored
    outcome: str  # "ok", or how it failed
    reason: str
    score: float | None  # bits per byte of that split

    @property
    def counts(self) -> bool:
        """Whether it has a score that compares with others of the tag."""
        return self.outcome == "ok" and self.split == "val"

    @property
    def val_bpb(self) -> float | None:
        return self.score if self.counts else None


@dataclass(frozen=True)
class Experiment:
    """What the journal says of one experiment."""

    n: int  # 0 is the baseline
    commit: str  # full hash
    base: str  # full hash of what it was proposed against, "" for a baseline
    description: str
    agent: str
    status: str | None = None  # "keep" | "discard" | "crash"; None while undecided
    val_bpb: float | None = None  # bits per byte
    memory_gb: float | None = None  # GiB
    reason: str = ""  # why it crashed
    expected: str = ""  # the effect that its agent expects
    repairs: int = 0  # times that its agent has mended it
    was: str = ""  # full hash of the attempt before the last repair
    repair_ask: int | None = None  # the question that the last repair answers
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    provenance: Record = dataclasses.field(default_factory=dict)  # what its score rests on
    note: str = ""  # something about it that a person should look at
    started: float = 0.0  # unix time
    finished: float | None = None  # unix time
    outcome: str | None = None  # of the training (trainer.OUTCOMES); None while untrained
    left: str = ""  # SHA-256 of what the training left
    ask: int | None = None  # the question to an agent that it answers
    of: int | None = None  # the experiment that was carried over to another best, which it is
    refused: str = ""  # why it cannot run, as the gate found before its turn
    program: str = ""  # what its train.py means (source.meaning); "" if that is not known
    scored: str | None = None  # of the scoring (scoring.Score); None while it is to be done
    repeats: tuple[Repeat, ...] = ()  # what was measured of it again
    verdict: str = ""  # why a policy that measures again has kept or discarded it
    place: int | None = None  # among the decided ones, in the order of their decisions
    workers: int = 1  # that measured side by side when it was decided


def replay(steps: list[Record]) -> list[Experiment]:
    """The experiments that the records describe."""
    return Replay().up_to(steps)


class Replay:
    """The experiments of a list of records that only grows; each record is looked at once."""

    def __init__(self) -> None:
        self._seen = 0  # records
        self._found: dict[int, Experiment] = {}
        self._listed: list[Experiment] = []
        self._decided = 0
        self._workers = 1  # of the session that the last record is of

    def up_to(self, records: list[Record]) -> list[Experiment]:
        """The experiments by their number. A list that was returned does not change any more."""
        if self._seen != len(records):
            for record in records[self._seen :]:
                self._apply(record)
            self._seen = len(records)
            self._listed = [self._found[n] for n in sorted(self._found)]
        return self._listed

    def _apply(self, step: Record) -> None:
        n, found = step.get("n"), self._found
        if step["step"] == "session":
            self._workers = step.get("workers") or 1
        elif step["step"] == "proposed":
            found[step["n"]] = Experiment(
                n=step["n"],
                commit=step["commit"],
                base=step["base"],
                description=step["description"],
                agent=step["agent"],
                expected=step.get("expected", ""),
                metrics=step["metrics"],
                program=step.get("program", ""),
                ask=step.get("ask"),
                of=step.get("of"),
                refused=step.get("refused", ""),
                started=step["time"],
            )
        elif step["step"] == "repaired" and n in found:
            found[n] = dataclasses.replace(
                found[n],
                commit=step["commit"],
                program=step["program"],
                description=step["description"],
                repairs=found[n].repairs + 1,
                was=step["was"],
                repair_ask=step.get("ask"),
                refused="",
                outcome=None,
                scored=None,
                reason="",
                note="",
            )
        elif step["step"] == "trained" and n in found:
            metrics = found[n].metrics | step["metrics"]
            peak_mb = metrics.get("peak_vram_mb")
            found[n] = dataclasses.replace(
                found[n],
                outcome=step["outcome"],
                reason=step["reason"],
                metrics=metrics,
                memory_gb=None if peak_mb is None else peak_mb / 1024,
                provenance=step.get("provenance", {}),
                note=step.get("note", ""),
                left=step.get("left", ""),
                scored=None,
            )
        elif step["step"] == "scored" and n in found:
            metrics = found[n].metrics | step["metrics"]
            found[n] = dataclasses.replace(
                found[n],
                scored=step["outcome"],
                reason=step["reason"],
                metrics=metrics,
                val_bpb=step["metrics"].get("val_bpb") if step["outcome"] == "ok" else None,
            )
        elif step["step"] == "repeated" and n in found:
            score = step["metrics"].get("val_bpb") if step["outcome"] == "ok" else None
            fields = {name: step[name] for name in ("seed", "purpose", "split", "outcome")}
            repeat = Repeat(**fields, reason=step["reason"], score=score)
            found[n] = dataclasses.replace(found[n], repeats=(*found[n].repeats, repeat))
        elif step["step"] == "decided" and n in found:
            found[n] = dataclasses.replace(
                found[n],
                status=step["status"],
                reason=step["reason"],
                verdict=step.get("verdict", ""),
                finished=step["time"],
                place=self._decided,
                workers=self._workers,
            )
            self._decided += 1


def decided(history: Sequence[Experiment]) -> list[Experiment]:
    """Those that are decided, in the order of their decisions: not of their numbers."""
    placed = [(e.place, e) for e in history if e.place is not None]
    return [e for _, e in sorted(placed, key=lambda pair: pair[0])]
