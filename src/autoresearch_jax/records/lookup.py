"""Which experiment, and which tag, a person means."""

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.workspace import Workspace


def pick_tag(workspace: Workspace, tag: str | None) -> str | None:
    """The tag itself, or the newest; None where nothing has run. Raises UserError."""
    tags = workspace.tags()
    if tag is None:
        return tags[-1] if tags else None
    if tag not in tags:
        known = f"there are {', '.join(tags)}" if tags else "nothing has run here yet"
        raise UserError(f"no experiment ran under the tag {tag!r}: {known}.")
    return tag


def find(experiments: Experiments, name: str) -> Experiment:
    """The experiment of that number, or whose commit starts so. Raises UserError."""
    by_number = [one for one in experiments if name.isdecimal() and one.n == int(name)]
    by_commit = [
        one for one in experiments if len(name) >= 4 and one.commit.startswith(name.lower())
    ]
    found = by_number or by_commit
    if len(found) == 1:
        return found[0]
    if found:
        commits = ", ".join(one.commit[:12] for one in found)
        raise UserError(f"{name!r} means {len(found)} commits: {commits}. Type more digits.")
    numbers = (
        f"numbers go from 0 to {len(experiments) - 1}"
        if len(experiments)
        else "nothing has run yet"
    )
    raise UserError(
        f"there is no experiment {name!r}: {numbers}; `autoresearch-jax results` lists them."
    )
