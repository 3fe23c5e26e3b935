"""Messages for users about what pydantic found wrong."""

from collections.abc import Collection, Iterable
from typing import Any

from pydantic import ValidationError

from autoresearch_jax.common.text import did_you_mean

YAML = {  # what a person writes, where pydantic has the word of Python
    "tuple_type": "should be a list, such as [a, b]",
    "dict_type": "should be lines such as name: value",
    "bool_type": "should be true or false",
    "string_type": "should be text: put it between quotes",
    "string_too_short": "should not be empty",
    "too_short": "should not be empty",
    "extra_forbidden": "should be left out: there is no such key",
}


def first_fault(error: ValidationError, at: str = "", secret: Collection[str] = ()) -> str:
    """Return the first fault as text after a file's name: `sets max to -1, and it should be ...`.

    `at` is the place of the checked value, such as agents.mine. The values of `secret` names are
    not repeated.
    """
    fault = error.errors(include_url=False)[0]
    if not fault["loc"]:  # a rule about several settings, in its own words
        return rule(error)
    parts = (at, *fault["loc"]) if at else fault["loc"]
    where = ".".join(str(part) for part in parts if part != "[key]")
    if fault["type"] == "missing":
        return f"does not set {where}"
    value = "" if fault["loc"][0] in secret else f" to {fault['input']!r:.200}"
    return f"sets {where}{value}, and it {rule(error)}"


def rule(error: ValidationError) -> str:
    """Return the rule that the first fault broke, such as `should be greater than 0`."""
    fault = error.errors(include_url=False)[0]
    raised: Any = fault.get("ctx", {}).get("error")
    return str(raised) if raised else YAML.get(fault["type"], fault["msg"].removeprefix("Input "))


def unknown(name: object, known: Iterable[str], what: str) -> str:
    """Return text such as `'x', which is not a setting. Did you mean y?`."""
    known = list(known)
    meant = did_you_mean(str(name).rpartition(".")[2], known)
    expected = f". Expected one of: {', '.join(known)}"
    return f"{name!r}, which is not {what}{meant or expected}"
