"""An idea: a Markdown file with settings at its top, a paragraph, and a patch on `train.py`."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoresearch_jax.common import front_matter, validation
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.ideas import merge

ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
BLOCK = re.compile(r"^```diff[ \t]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LARGEST = 1 << 20  # bytes of a file
Text = Annotated[str, Field(min_length=1)]
Id = Annotated[str, Field(pattern=f"^{ID.pattern}$")]


class Settings(BaseModel):
    """What the front matter of an idea says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    title: Text
    group: str = ""  # the part of the model or of its training that it changes
    kind: Literal["idea", "warning"] = "idea"  # a warning did not help others, and has no patch
    sources: Annotated[list[Text], Field(min_length=1)]
    claim: Text  # what its authors say it gains, and at which size
    effect: float | None = None  # the same as a change of val_bpb, in bits per byte; None: unknown
    measured: Text = "not yet"  # what it gained here
    neutral: bool = False  # whether it starts at the loss of the file that it is applied to
    needs: list[Id] = []
    excludes: list[Id] = []


class Idea(Settings):
    """One idea."""

    id: str
    path: Path
    text: str  # what it does, and why it may help
    patch: str  # "" for a warning

    @property
    def measured_effect(self) -> float | None:
        """The measured change of val_bpb in bits per byte; None if it is not known."""
        found = re.match(r"[-+]\d*\.\d+", self.measured)
        return float(found[0]) if found else None


def read(path: Path, shown: str | None = None) -> Idea:
    """Return the idea of a file, which messages call `shown`. Raises UserError."""
    place = shown or str(path)
    if not ID.fullmatch(path.stem):
        raise UserError(
            f"{place}: the name of an idea's file should be lower-case letters, digits and '-', "
            "such as my-idea.md. Rename it."
        )
    if not path.is_file():
        raise UserError(f"{place} should be a file with an idea. Move it out of its folder.")
    try:
        content = path.read_bytes()[:LARGEST].decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    with front_matter.refusing(place):
        settings = _settings(content)
        body = front_matter.split(content)[1]
    patches = BLOCK.findall(body)
    text = " ".join(BLOCK.sub("", body).split())
    expected = 0 if settings.kind == "warning" else 1
    if len(patches) != expected:
        raise UserError(
            f"{place} has {len(patches)} blocks that start with ```diff, and should have "
            f"{expected}, because its kind is {settings.kind!r}. Edit it."
        )
    if not text:
        raise UserError(f"{place} should say in words what it does and why it may help. Edit it.")
    patch = patches[0] if patches else ""
    if patch and not merge.has_changes(patch):
        raise UserError(
            f"{place}: its patch changes nothing. Each part of it should start with a line of @@, "
            "and its changed lines with + or -, as in the output of `git diff`."
        )
    return Idea(id=path.stem, path=path, text=text, patch=patch, **settings.model_dump())


def _settings(content: str) -> Settings:
    """Return the settings at the top. Raises ValueError, as `front_matter.load` does."""
    loaded = front_matter.load(content)
    if not isinstance(loaded, dict):
        raise ValueError("should be lines such as title: A name, between two lines of ---")
    if unknown := [name for name in loaded if name not in Settings.model_fields]:
        raise ValueError(f"sets {validation.unknown(unknown[0], Settings.model_fields, 'a key')}")
    try:
        return Settings.model_validate(loaded)
    except ValidationError as error:
        raise ValueError(validation.first_fault(error)) from None
