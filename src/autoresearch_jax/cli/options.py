"""Options whose name, type and help come from the settings of `loop/config.py`.

They are created when a command is parsed or its help is shown, so that `autoresearch-jax --help`
imports neither pydantic nor the settings.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

LARGEST = 2**31 - 1
tag_option = click.option("--tag", help="Another tag.  [default: the newest]")


class Count(click.IntRange):
    """Whole numbers up to LARGEST, more than any memory or run has."""

    name = "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number > LARGEST:
            self.fail(f"{number} is more than {LARGEST}.", param, ctx)
        return number


class Finite(click.FloatRange):
    """Finite numbers: click takes nan for a number in every range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Setting(click.ParamType):
    """The value of a setting, under the same rules as in program.md."""

    def __init__(self, field: str) -> None:
        self.name = self.field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from autoresearch_jax.loop import config

        if not isinstance(value, str):
            return value
        try:
            return config.parse(self.field, value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class Configured(click.Command):
    """A command that takes some of the settings as options, after its own."""

    def __init__(self, *arguments: Any, settings: Sequence[str] = (), **others: Any) -> None:
        super().__init__(*arguments, **others)
        self._names = settings

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, helping = super().get_params(ctx)
        return [*own, *self._settings, helping]

    @functools.cached_property
    def _settings(self) -> list[click.Parameter]:
        return [_option(name) for name in self._names]


def _joined(_: click.Context, __: click.Parameter, given: tuple[tuple[str, ...], ...]) -> Any:
    """Return the names of a flag that may be repeated; None: it was not given."""
    return tuple(dict.fromkeys(name for names in given for name in names)) or None


# Of a flag that names trackers.
TRACKERS: dict[str, Any] = {"multiple": True, "type": Setting("track"), "callback": _joined}


def _option(name: str) -> click.Option:
    from autoresearch_jax.loop.config import LoopConfig

    field = LoopConfig.model_fields[name]
    extra: Any = field.json_schema_extra
    flag, kind = extra["flag"] or f"--{name.replace('_', '-')}", field.annotation
    choice = next((one for one in (kind, *get_args(kind)) if get_origin(one) is Literal), None)
    options: dict[str, Any] = {"type": Setting(name), "metavar": extra["metavar"] or None}
    if kind is bool:
        flag, options = f"{flag}/--no-{flag[2:]}", {}
    elif choice is not None:
        options = {"type": click.Choice(get_args(choice))}
    elif kind == tuple[Path, ...]:
        options |= {"multiple": True, "type": click.Path(path_type=Path)}
    elif name == "track":
        options |= TRACKERS
    return click.Option(
        [flag, name] if extra["flag"] else [flag], help=field.description, default=None, **options
    )
