"""Put an idea into the train.py of the checkout."""

from pathlib import Path

from autoresearch_jax.common import files, literals
from autoresearch_jax.common.console import typed
from autoresearch_jax.ideas import fit, library, merge
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import ideas as view


def apply(folder: Path, name: str) -> list[str]:
    """Write an idea into train.py in one step; return what changed, and what to type next.

    Raises:
        UserError: `folder` is not in a workspace, there is no such idea, or it cannot be applied.
    """
    workspace = Workspace.open(folder)
    ideas = library.load(workspace.root)
    idea, before = library.get(ideas, name), view.train_py(workspace)
    after = fit.apply(idea, before, ideas)
    if after == before:
        return [f"train.py contains {name} already, and stays as it is."]
    path = workspace.root / "train.py"
    files.write_bytes(path, literals.encode(after, like=path.read_bytes()))
    edits = merge.edits(before.split("\n"), after.split("\n"))
    added, removed = sum(len(e.lines) for e in edits), sum(e.end - e.start for e in edits)
    old, new = (literals.read(text) for text in (before, after))
    constants = [
        f"  {key} = {one.value!r}" + (f", before {old[key].value!r}" if key in old else "")
        for key, one in new.items()
        if key not in old or old[key].value != one.value
    ]
    return [
        f"train.py now has {name}: {added} lines added, {removed} removed.",
        *(["Constants:", *constants] if constants else []),
        "Next:",
        typed(f"  autoresearch-jax run --compile-only  # does {name} compile and fit"),
        typed(f'  autoresearch-jax run -m "{name}"  # train and score it; kept if it improves'),
    ]
