"""Messages for users about what pydantic found wrong."""

from collections.abc import Collection, Iterable
from typing import Any

from pydantic import ValidationError

from autoresearch_jax.common.text import did_you_mean


def first_fault(error: ValidationError, secret: Collection[str] = ()) -> str:
    """Return the first fault as text after a file's name: `sets max to -1, and it should be ...`.

    The values of `secret` names are not repeated.
    """
    fault = error.errors(include_url=False)[0]
    if not fault["loc"]:  # a rule about several settings, in its own words
        return rule(error)
    where = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    value = "" if fault["loc"][0] in secret else f" to {fault['input']!r:.200}"
    return f"sets {where}{value}, and it {rule(error)}"


def rule(error: ValidationError) -> str:
    """Return the rule that the first fault broke, such as `should be greater than 0`."""
    fault = error.errors(include_url=False)[0]
    raised: Any = fault.get("ctx", {}).get("error")
    return str(raised) if raised else fault["msg"].removeprefix("Input ")


def unknown(name: object, known: Iterable[str], what: str) -> str:
    """Return that this name is unknown, and the most similar known one."""
    known = list(known)
    meant = did_you_mean(str(name), known) or f". There are: {', '.join(known)}"
    return f"{name!r}, which is not {what}{meant}"
