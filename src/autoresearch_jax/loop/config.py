"""The settings of a loop: one frozen object, resolved once from flags and program.md.

The front matter of program.md sets defaults for a workspace (docs/program-md-guide.md), and a flag
of the command overrides them. A setting is described once, as a field here; its flag, if a command
has one, takes its name, its type and its help from the field (`cli/options.py`).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from autoresearch_jax.agents import client_specs
from autoresearch_jax.agents.search_space import GivenRange
from autoresearch_jax.common import front_matter, validation
from autoresearch_jax.loop import sending
from autoresearch_jax.loop.statistics import AUDIT_RUNS
from autoresearch_jax.records.costs import Spent

EVENTS = ("best", "crashes", "done", "paused")
CRASHES = re.compile("crashes=([1-9][0-9]{0,8})")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")  # each also the name of an extra


def _runs(value: int) -> int:
    if value == 1:
        raise ValueError("should be 0, or 2 or more: one run says nothing about noise")
    return value


def _events(value: object) -> object:
    """Return the events of a comma-separated list."""
    if isinstance(value, tuple):
        return value
    listed = value.split(",") if isinstance(value, str) else []
    found = tuple(name.strip() for name in listed if name.strip())
    if not found or not all(one in EVENTS or CRASHES.fullmatch(one) for one in found):
        raise ValueError(
            f"should list some of {','.join(EVENTS)}; crashes=5 means 5 in a row, any number from 1"
        )
    if sum(one.startswith("crashes") for one in found) > 1:
        raise ValueError("should have crashes once")
    return found


def _trackers(value: object) -> object:
    """Return the trackers of a list, in which a comma may separate them."""
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list | tuple) and all(isinstance(one, str) for one in listed):
        names = [name.strip() for one in listed for name in one.split(",")]
        if {*names} <= {*TRACKERS}:
            return tuple(dict.fromkeys(names))
    raise ValueError(f"should list some of {','.join(TRACKERS)}")


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Whole = Annotated[int, Field(ge=0, lt=1 << 31)]
Positive = Annotated[float, Field(gt=0, lt=1e15)]
Isolation = Literal["bwrap", "landlock", "none"]


def _setting(words: str, metavar: str = "", flag: str = "", **field: Any) -> Any:
    """Return a field: help, metavar and name of its flag, and pydantic's arguments.

    By default the flag has the name of the field.
    """
    if "default_factory" not in field:
        field.setdefault("default", None)
    return Field(description=words, json_schema_extra={"metavar": metavar, "flag": flag}, **field)


class Settings(BaseModel):
    """The settings that program.md may hold. None: no limit, or not set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    agent: Text = _setting(
        "The agent that proposes: search or tpe (built in), claude, codex, gemini, opencode, "
        "hybrid, or any shell command that edits train.py; NAME:MODEL picks a model.  "
        "[default: search]",
        "NAME-OR-COMMAND",
        default="search",
    )
    max: Whole | None = _setting(
        "Experiments to add; a baseline is extra.  [default: until stopped]", "N"
    )
    max_hours: Positive | None = _setting("Start no experiment that would end later.", "H")
    max_usd: Positive | None = _setting("Stop once the agent's answers have cost this much.", "D")
    max_memory_gb: Positive | None = _setting(
        "GiB of a device's memory that a training may use.  [default: all of it]", "GB"
    )
    repairs: Whole = _setting(
        "How often the agent may repair a crash before it is recorded.  [default: 1]",
        "K",
        default=1,
    )
    lookahead: bool = _setting(
        "Whether the agent thinks about the next experiment during a training.  [default: yes]",
        default=True,
    )
    fallback: bool = _setting(
        "Whether search proposes while the agent does not answer.  [default: yes]", default=True
    )
    policy: Literal["strict", "confirm"] = _setting(
        "What is kept: a lower score, or what is still better when measured again.  "
        "[default: strict]",
        default="strict",
    )
    less_code: bool = _setting(
        "Whether an equal score with less code is kept (policy: confirm).", default=False
    )
    audit: Annotated[Whole, AfterValidator(_runs)] = _setting(
        "At the end, train baseline and best K more times each, and report the gain with its "
        "interval.  [default: 3 with confirm, else 0]",
        "K",
        default_factory=lambda found: AUDIT_RUNS if found.get("policy") == "confirm" else 0,
    )
    plateau: Whole = _setting(
        "Decisions without a keep, after which near misses are tried together; 0: never.  "
        "[default: 20]",
        "N",
        default=20,
    )
    prune: bool = _setting(
        "Whether to take kept changes out again at the end that do not matter any more.  "
        "[default: no]",
        default=False,
    )
    workers: Annotated[Whole, Field(ge=1)] = _setting(
        "Trainings at a time, each on its own devices.  [default: 1]", "N", default=1
    )
    hosts: Annotated[Whole, Field(ge=1)] = _setting(
        "Machines that train one experiment together, with --ray.  [default: 1]", "K", default=1
    )
    notify: Annotated[str, AfterValidator(sending.recipient)] = _setting(
        "Where to send events: an address of Slack, Discord, Telegram, e-mail or another service "
        'that Apprise knows; any other web address, which gets a POST of {"text": ...}; or a shell '
        "command, which gets the text on standard input and as $AUTORESEARCH_TEXT.",
        "COMMAND-OR-URL",
        default="",
        repr=False,  # an address is as good as a key
    )
    notify_on: Annotated[tuple[str, ...], BeforeValidator(_events)] = _setting(
        "The events to send: best, crashes (3 in a row; crashes=5: 5), done, paused.  "
        "[default: all]",
        "EVENTS",
        default=EVENTS,
    )
    notify_digest: Literal["hour", "night"] | None = _setting(
        "Send one message an hour, or one at the end of the loop, with what happened and the "
        "picture, instead of one for each best and for the end.",
    )
    track: Annotated[tuple[str, ...], BeforeValidator(_trackers)] = _setting(
        f"Export meanwhile to {', '.join(TRACKERS[:-1])} or {TRACKERS[-1]}; may be repeated.",
        "TRACKER",
        default=(),
    )
    learn_from: Text | None = _setting(
        "Begin with what another tag has found, here or in another workspace.", "TAG|DIR"
    )
    search: dict[str, GivenRange] = _setting(
        "Ranges of the constants that a search may change.", default_factory=dict
    )
    agents: dict[str, Any] = _setting(
        "Agent clients besides the built-in ones, by name.", default_factory=dict
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, described in self.agents.items():
            client_specs.parse(name, described)
        return self

    @property
    def crashes(self) -> int:
        """Return how many crashes in a row make an event."""
        given = filter(None, map(CRASHES.match, self.notify_on))
        return next((int(found[1]) for found in given), 3)


class LoopConfig(Settings):
    """The configuration of a loop, and of every other command that trains."""

    tag: str | None = _setting(
        "Work on branch autoresearch/TAG.  [default: the newest that fits, else a new one]", "TAG"
    )
    ray: str | None = _setting(
        "Train on the machines of the Ray cluster at ADDRESS; auto: the cluster that this machine "
        "belongs to.",
        "ADDRESS",
    )
    start: Text | None = _setting(
        "Begin at experiment N instead of the best, until something of that line is kept.",
        "N|COMMIT",
        "--from",
    )
    desc: str = _setting("What this session is after.", "TEXT", default="")
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = _setting(
        "Seed of the search.  [default: 0]", "N", default=0
    )
    agent_writes: tuple[Path, ...] = _setting(
        "A path that the agent may write to, besides its copy of the workspace; may be repeated.",
        "PATH",
        default=(),
    )
    isolation: Literal["auto", Isolation] = _setting(
        "The sandbox of train.py and of agents.  [default: auto, the strongest that works]",
        default="auto",
    )
    require_isolation: Isolation | None = _setting("Refuse to run with a weaker sandbox.")

    @property
    def limits(self) -> dict[str, float | None]:
        """Return the limits, as the record of a session has them."""
        return self.model_dump(include={"max", "max_hours", "max_usd"})

    def recorded(self) -> dict[str, Any]:
        """Return what the record of a loop's session holds, except its agent and its workers."""
        return {**self.limits, **self.model_dump(include={"desc", "seed", "policy"})}

    def over(self, spent: Spent, next_s: float = 0.0) -> str:
        """Return the limit that forbids one more experiment of `next_s` seconds; "" if none.

        Hours come first: what begins beyond other limits needs time as well.
        """
        if self.max_hours is not None and spent.loop_s + next_s > 3600 * self.max_hours:
            return "max-hours"
        if self.max is not None and spent.experiments >= self.max:
            return "max"
        if self.max_usd is not None and spent.usd >= self.max_usd:
            return "max-usd"
        return ""

    def left(self, spent: Spent) -> dict[str, Any]:
        """Return what is left, as fields of an agent's Brief; None: without limit."""
        return {
            "seconds_left": self.max_hours and max(0.0, 3600 * self.max_hours - spent.loop_s),
            "usd_left": self.max_usd and max(0.0, self.max_usd - spent.usd),
            "experiments_left": None if self.max is None else max(0, self.max - spent.experiments),
        }


SETTINGS = tuple(Settings.model_fields)
SECRET = ("notify",)  # an address may hold a key, and is not repeated in messages


def resolve(root: Path, **flags: Any) -> LoopConfig:
    """Return the configuration of a command in the workspace at `root`.

    A flag that is None was not given. Raises UserError where program.md sets something wrong.
    """
    path = root / "program.md"
    program = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return from_program(program, str(path), **flags)


def from_program(program: str, place: str = "program.md", **flags: Any) -> LoopConfig:
    """Return what `resolve` returns, from the text of a program.md; messages name its `place`."""
    with front_matter.refusing(place):
        found = front_matter.load(program)
        if found is None:
            found = {}
        if not isinstance(found, dict):
            raise ValueError(f"is {found!r}, and should be lines such as max_memory_gb: 40")
        for name in found:
            if name not in SETTINGS:
                raise ValueError(f"sets {validation.unknown(name, SETTINGS, 'a setting')}")
        found = {name: value for name, value in found.items() if value is not None}
        try:
            Settings(**found)
        except ValidationError as error:
            raise ValueError(validation.first_fault(error, secret=SECRET)) from None
    return LoopConfig(**found | {k: v for k, v in flags.items() if v is not None})


def parse(name: str, text: str) -> Any:
    """Return a setting's value from the text after its flag. Raises ValueError: the broken rule."""
    field = LoopConfig.model_fields[name]
    kind: Any = field.annotation
    for rule in field.metadata:
        kind = Annotated[kind, rule]
    try:
        return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(text)
    except ValidationError as error:
        value = "its value" if name in SECRET else repr(text)
        raise ValueError(f"{value} {validation.rule(error)}") from None
