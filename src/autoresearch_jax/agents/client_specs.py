"""Descriptions of clients: clients.yaml, and `agents:` in the front matter of program.md."""

import functools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import jmespath
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from autoresearch_jax.common import validation
from autoresearch_jax.common.paths import expanded

SHIPPED = Path(__file__).with_name("clients.yaml")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
RESERVED = ("search", "tpe", "hybrid", "person")
FIELDS = ("reply", "usd", "tokens", "error")  # JMESPath expressions


def _with_model(words: tuple[str, ...]) -> tuple[str, ...]:
    if not any("{model}" in word for word in words):
        raise ValueError('should have a word with {model}, such as [--model, "{model}"]')
    return words


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"should be a regular expression: {error}") from None
    return text


def _expression(text: str) -> str:
    try:
        jmespath.compile(text)
    except jmespath.exceptions.JMESPathError as error:
        raise ValueError(
            f"should be a JMESPath expression: {' '.join(str(error).split())}"
        ) from None
    return text


# A list in YAML is a tuple here, so that a client cannot change.
Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Expression = Annotated[str, AfterValidator(_expression)]
Reported = Literal["missing", "login", "limit", "stopped", "refused"]  # as in replies.TROUBLES


class Client(BaseModel):
    """A client as described in clients.yaml. Paths may contain ~ and $VARIABLES."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    command: Annotated[Words, Field(min_length=1)]  # with {worktree}, {prompt} and {prompt_file} as
    # placeholders; without one of the latter two, the prompt is on standard input
    model: Annotated[Words, AfterValidator(_with_model)] = ()  # arguments that select a model
    env: dict[str, str] = Field(default_factory=dict)  # in addition to the user's
    output: Literal["text", "json", "json-lines"] = "text"
    reply: Expression | None = None  # where its output has the answer, and so on
    usd: Expression | None = None
    tokens: Expression | None = None
    error: Expression | None = None
    troubles: dict[Reported, Pattern] = Field(default_factory=dict)  # see replies
    needs_sandbox: bool = False  # whether only our sandbox restricts it
    trial: Words = ()  # a command that fails if its own sandbox cannot start
    trial_advice: str = ""  # what to do if it fails
    writes: Words = ()  # files of login and sessions; a trailing / means a folder
    install: str = ""  # the command that installs it
    login: str = ""  # the command that logs in
    login_env: Words = ()  # any of these variables or files counts as a login;
    login_files: Words = ()  # if both are empty, the login is not checked
    login_maybe: Words = ()  # settings that may contain a login: with these, unknown
    limit_s: Annotated[float, Field(gt=0, lt=1e6)] = 1800.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.expressions and self.output == "text":
            field = next(iter(self.expressions))
            raise ValueError(f"sets agents.{self.name}.{field}, which needs output: json")
        return self

    @property
    def expressions(self) -> dict[str, str]:
        """The JMESPath expressions that find answer, cost and error in its output."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}

    @property
    def program(self) -> str:
        return self.command[0]

    def installed(self) -> str | None:
        """Return the path of its program, or None if it is not in PATH."""
        return shutil.which(self.program)

    def logged_in(self) -> bool | None:
        """Return whether a login exists, or None if files and variables do not show it."""
        variables = any(os.environ.get(name) for name in self.login_env)
        if variables or any(path.exists() for path in places(self.login_files)):
            return True
        unknown = not (self.login_env or self.login_files)
        return None if unknown or any(path.exists() for path in places(self.login_maybe)) else False


@functools.cache
def shipped() -> Mapping[str, Client]:
    """Return the clients of clients.yaml, by name."""
    found: dict[str, Client] = {}
    for name, described in yaml.safe_load(SHIPPED.read_text(encoding="utf-8")).items():
        found[name] = parse(name, described, found)
    return found


def known(clients: Mapping[str, Any]) -> dict[str, Client]:
    """Return the built-in clients and the user's, which take precedence. Raises ValueError."""
    return {**shipped(), **{name: parse(name, described) for name, described in clients.items()}}


def parse(name: str, described: Any, others: Mapping[str, Client] | None = None) -> Client:
    """Return a client from its description under `agents:` in program.md's front matter.

    `others` are the clients that `like` may name, by default the built-in ones. Raises ValueError
    if the description is invalid; the message completes "The front matter ...", such as `sets
    agents.mine.output to 'xml', and it should be ...`.
    """
    others = shipped() if others is None else others
    where = f"agents.{name}"
    if not NAME.fullmatch(name) or name in RESERVED:
        rule = f"letters, digits, _ . - and none of {', '.join(RESERVED)}"
        raise ValueError(f"names an agent {name!r}, and a name should be {rule}")
    if not isinstance(described, dict):
        example = "command: [my-client, --quiet]"
        raise ValueError(f"sets {where} to {described!r}, and it should be lines such as {example}")
    keys = ["like", *(key for key in Client.model_fields if key != "name")]
    for key in described:
        if key not in keys:
            raise ValueError(
                f"sets {validation.unknown(f'{where}.{key}', keys, 'a key of agents')}"
            )
    like = described.get("like")
    if like is not None and (not isinstance(like, str) or like not in others):
        raise ValueError(f"sets {where}.like to {validation.unknown(like, others, 'a client')}")
    base = {} if like is None else others[like].model_dump()
    changes = {key: value for key, value in described.items() if key != "like"}
    try:
        return Client(**{**base, **changes, "name": name})
    except ValidationError as error:
        raise ValueError(validation.first_fault(error, at=where)) from None


def places(paths: Sequence[str]) -> list[Path]:
    """Return the paths with ~ and variables expanded, without those where that is impossible."""
    found = [expanded(os.path.expandvars(path)) for path in paths]
    return [
        path.absolute() for path in found if "$" not in str(path) and not str(path).startswith("~")
    ]
