"""The ideas that are there: the shipped ones, and those in the folder `ideas/` of a workspace."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from autoresearch_jax.common import validation
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import did_you_mean, sentence
from autoresearch_jax.ideas import idea
from autoresearch_jax.ideas.idea import Idea

FOLDER = "ideas"  # of a workspace, with ideas of its own


def load(workspace: Path | None = None) -> dict[str, Idea]:
    """Return all ideas by name: the shipped ones, then the workspace's. Raises UserError."""
    found = dict(_shipped())
    own = sorted((workspace / FOLDER).glob("*.md")) if workspace else []
    for path in own:
        if path.name == "README.md":
            continue
        place = f"{FOLDER}/{path.name}"
        if path.stem in found:
            raise UserError(
                f"{place} has the name of a shipped idea, which it would hide. Rename it, for "
                f"example: mv {place} {FOLDER}/my-{path.name}"
            )
        found[path.stem] = idea.read(path, place)
    for one in found.values():
        for key, names in (("needs", one.needs), ("excludes", one.excludes)):
            for name in names:
                if name not in found or name == one.id:
                    others = [other for other in found if other != one.id]
                    why = validation.unknown(name, others, "another idea")
                    raise UserError(f"{one.path} sets {key} to {sentence(why)} Correct it.")
    return found


def usable(workspace: Path) -> dict[str, Idea]:
    """Return all ideas by name; the shipped ones alone if one of the workspace cannot be read."""
    try:
        return load(workspace)
    except UserError:
        return load()


def get(ideas: Mapping[str, Idea], name: str) -> Idea:
    """Return the idea of that name. Raises UserError."""
    if name not in ideas:
        meant = did_you_mean(name, ideas) or "."
        raise UserError(f"There is no idea {name!r}{meant} List them: autoresearch-jax ideas")
    return ideas[name]


@cache
def _shipped() -> dict[str, Idea]:
    paths = sorted((Path(__file__).parent / "shipped").glob("*.md"))
    return {path.stem: idea.read(path) for path in paths}
