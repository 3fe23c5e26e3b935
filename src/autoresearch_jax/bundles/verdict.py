"""What was found out about a bundle on this machine."""

from enum import StrEnum

import msgspec

SAME_BPB = 1e-5  # some GPU kernels do not add in the same order twice


class State(StrEnum):
    """Whether something that a bundle says is so."""

    CONFIRMED = "confirmed"
    OPEN = "not confirmed"


class Finding(msgspec.Struct, frozen=True):
    """One thing that a bundle says, and whether it is so."""

    state: State
    text: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about a bundle, in the order in which it was looked at."""

    findings: tuple[Finding, ...] = ()
    refused: str = ""  # the name of the forgery or of the damage
    why: str = ""  # of what is refused
    val_bpb: float | None = None  # computed here
    metrics: dict[str, float] = {}  # of that scoring, its probes among them
    device: str = ""  # that computed it
    at: float = 0.0  # Unix time

    @property
    def confirmed(self) -> bool:
        """Whether the score was computed here, and is the one that the bundle says."""
        return self.val_bpb is not None and not self.refused

    @property
    def lines(self) -> list[str]:
        return [f"{one.state:<15}{one.text}" for one in self.findings]
