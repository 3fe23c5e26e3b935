"""Descriptions of clients: clients.yaml, and `agents:` in the front matter of program.md."""

import dataclasses
import functools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from autoresearch_jax.agents import replies

LIMIT_S = 1800.0
SHIPPED = Path(__file__).with_name("clients.yaml")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
RESERVED = ("tpe", "hybrid", "person")
FIELDS = ("reply", "usd", "tokens", "error")  # JMESPath expressions


@dataclass(frozen=True)
class Client:
    """A client as described in clients.yaml. Paths may contain ~ and $VARIABLES."""

    name: str
    command: tuple[str, ...]  # with {worktree}, {prompt} and {prompt_file} as placeholders;
    # without one of the latter two, the prompt is on standard input
    model: tuple[str, ...] = ()  # arguments that select a model, with {model}
    env: Mapping[str, str] = field(default_factory=dict)  # in addition to the user's
    output: str = "text"  # one of replies.OUTPUTS
    fields: Mapping[str, str] = field(default_factory=dict)  # of FIELDS
    troubles: Mapping[str, str] = field(default_factory=dict)  # kind -> pattern, see replies
    needs_box: bool = False  # whether only our sandbox restricts it
    trial: tuple[str, ...] = ()  # a command that fails if its own sandbox cannot start
    trial_advice: str = ""  # what to do if it fails
    writes: tuple[str, ...] = ()  # files of login and sessions; a trailing / means a folder
    install: str = ""  # the command that installs it
    login: str = ""  # the command that logs in
    login_env: tuple[str, ...] = ()  # any of these variables or files counts as a login;
    login_files: tuple[str, ...] = ()  # if both are empty, the login is not checked
    login_maybe: tuple[str, ...] = ()  # settings that may contain a login: with these, unknown
    limit_s: float = LIMIT_S

    @property
    def program(self) -> str:
        return self.command[0]

    def installed(self) -> str | None:
        """Return the path of its program, or None if it is not in PATH."""
        return shutil.which(self.program)

    def logged_in(self) -> bool | None:
        """Return whether a login exists, or None if files and variables do not tell."""
        variables = any(os.environ.get(name) for name in self.login_env)
        if variables or any(path.exists() for path in places(self.login_files)):
            return True
        looked = bool(self.login_env or self.login_files)
        maybe = any(path.exists() for path in places(self.login_maybe))
        return False if looked and not maybe else None


@functools.cache
def shipped() -> Mapping[str, Client]:
    """Return the clients of clients.yaml, by name."""
    found: dict[str, Client] = {}
    for name, described in yaml.safe_load(SHIPPED.read_text(encoding="utf-8")).items():
        found[name] = _parse(name, described, found)
    return found


def parse(name: str, described: Any) -> Client:
    """Return a client from its description under `agents:` in program.md's front matter.

    Raises ValueError if the description is invalid; the message completes "The front matter ...",
    such as `sets agents.mine.output to 'xml', and it must be ...`.
    """
    return _parse(name, described, shipped())


def _parse(name: str, described: Any, others: Mapping[str, Client]) -> Client:
    where = f"agents.{name}"
    if not NAME.fullmatch(name) or name in RESERVED:
        rule = f"letters, digits, _ . - and none of {', '.join(RESERVED)}"
        raise ValueError(f"names an agent {name!r}, and a name must be {rule}")
    if not isinstance(described, dict):
        raise _wrong(where, described, "lines such as command: [my-client, --quiet]")
    described = dict(described)
    like = described.pop("like", None)
    if like is not None and (not isinstance(like, str) or like not in others):
        raise _wrong(f"{where}.like", like, f"one of {', '.join(others)}")
    for key in described:
        if key not in CHECKS:
            raise ValueError(f"sets {where}.{key}, which is none of: like, {', '.join(CHECKS)}")
    found = {key: CHECKS[key](f"{where}.{key}", value) for key, value in described.items()}
    if not like and "command" not in found:
        raise ValueError(f"has no {where}.command, such as [my-client, --quiet]")
    base = others[like] if like else Client("", ())
    fields = {**base.fields, **{key: found.pop(key) for key in FIELDS if key in found}}
    if fields and found.get("output", base.output) == "text":
        raise ValueError(f"sets {where}.{next(iter(fields))}, and output: text has no such fields")
    return dataclasses.replace(base, name=name, fields=fields, **found)


def _words(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
        raise _wrong(where, value, "a list of words, such as [my-client, --quiet]")
    return tuple(value)


def _command(where: str, value: Any) -> tuple[str, ...]:
    if value == []:
        raise _wrong(where, value, "a list of words, such as [my-client, --quiet]")
    return _words(where, value)


def _model(where: str, value: Any) -> tuple[str, ...]:
    words = _words(where, value)
    if not any("{model}" in word for word in words):
        raise _wrong(where, value, 'words with {model} among them, such as [--model, "{model}"]')
    return words


def _texts(where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(v, str) for v in [*value, *value.values()]
    ):
        raise _wrong(where, value, 'names with a text for each, such as {QUIET: "1"}')
    return value


def _line(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(where, value, "a text")
    return value


def _switch(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def _seconds(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise _wrong(where, value, "a number of seconds above 0")
    return float(value)


def _one_of(*choices: str) -> Any:
    def check(where: str, value: Any) -> str:
        if value not in choices:
            raise _wrong(where, value, f"one of {', '.join(choices)}")
        return str(value)

    return check


def _patterns(where: str, value: Any) -> dict[str, str]:
    for kind, pattern in _texts(where, value).items():
        _one_of(*replies.TROUBLES)(f"a name in {where}", kind)
        try:
            re.compile(pattern)
        except re.error as error:
            raise _wrong(f"{where}.{kind}", pattern, f"a regular expression: {error}") from None
    return dict(value)


def _expression(where: str, value: Any) -> str:
    import jmespath  # slow to import, and only needed for user-defined clients

    try:
        jmespath.compile(_line(where, value))
    except jmespath.exceptions.JMESPathError as error:
        why = " ".join(str(error).split())
        raise _wrong(where, value, f"a JMESPath expression: {why}") from None
    return str(value)


CHECKS: dict[str, Any] = {
    "command": _command,
    "model": _model,
    "env": _texts,
    "output": _one_of(*replies.OUTPUTS),
    **dict.fromkeys(FIELDS, _expression),
    "troubles": _patterns,
    "needs_box": _switch,
    "trial": _words,
    "trial_advice": _line,
    "writes": _words,
    "install": _line,
    "login": _line,
    "login_env": _words,
    "login_files": _words,
    "login_maybe": _words,
    "limit_s": _seconds,
}


def _wrong(where: str, value: Any, rule: str) -> ValueError:
    return ValueError(f"sets {where} to {value!r}, and it must be {rule}")


def places(paths: Sequence[str]) -> list[Path]:
    """Return the paths with ~ and variables expanded, without those with an unset variable."""
    found = [Path(os.path.expandvars(path)).expanduser() for path in paths]
    return [path.absolute() for path in found if "$" not in str(path)]
