"""The main job at a size that fits anything: a workspace, its data, a baseline, experiments."""

import shlex
from pathlib import Path

from rich.console import Console

from autoresearch_jax.commands import loop, presets, setup
from autoresearch_jax.common.console import View, typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.loop import config
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views import plot, results
from autoresearch_jax.views.watch import live_model

PRESET = "demo"


def demo(target: Path, console: Console, view: View, *, seed: int, experiments: int) -> None:
    """Carries the demo out, or what an earlier one in `target` left undone.

    Raises:
        UserError: `target` is something else, or a step failed.
    """
    target = target.absolute()
    view.say(f"[1/4] A workspace in {target}")
    if setup.is_workspace(target):
        _check_ours(target)
    else:
        setup.setup(target, view, preset=PRESET, skip_data=True)
    view.say("[2/4] Text from the Python documentation on this machine, packed into tokens")
    # Without a source it only looks whether the data is ready.
    setup.prepare(target, view, source=None if setup.data(target) else "pydocs")
    workspace = Workspace.open(target)
    budget = workspace.constants()["TIME_BUDGET"]
    view.say(
        f"[3/4] The baseline and {experiments} experiment{'' if experiments == 1 else 's'} of "
        f"{budget} s each: a search changes "
        "train.py, and what lowers val_bpb is kept"
    )
    done = _decided(workspace)
    if done > experiments:
        view.say(f"All are recorded already; to start afresh: rm -r {_short(target)}")
    else:
        if done:
            view.say(f"{done} are recorded already; going on from them.")
        chosen = config.resolve(target, agent="tpe", max=experiments, seed=seed)
        ended = loop.run_loop(workspace, chosen, Tools(view))
        if ended.stopped != "max":
            view.say("Stopped early; the same command goes on from here.")
    view.say("[4/4] Results")
    model = live_model.read(target)
    listed = model.entries
    if not listed:
        return
    picture = target / "progress.png"
    plot.progress(listed, picture, title="autoresearch-jax demo")
    results.print_results(console, listed, model.summary)
    best = model.summary.best
    first = best.n if best is not None and best.improved else listed[-1].n
    view.say(f"\nThe picture: {picture}")
    here = f"autoresearch-jax -C {_short(target)}"
    full = "autoresearch-jax setup ../research"
    lines = {
        f"{here} show {first}": "one experiment in full",
        f"{here} loop --max 10": "go on searching",
        full: "a workspace of full size",
    }
    view.say("Next:")
    for command, what in lines.items():
        view.say(typed(f"  {command:<{len(here) + 15}}# {what}"))


def _check_ours(target: Path) -> None:
    wanted = presets.get(PRESET).constants
    found = manifest.read_constants(target / "constants.py")
    if any(found.get(name) != value for name, value in wanted.items()):
        raise UserError(
            f"{target} is a workspace of another size, not the demo's: choose another folder with "
            "`autoresearch-jax demo --dir DIR`."
        )


def _decided(workspace: Workspace) -> int:
    tags = workspace.tags()
    return len(journal.read(workspace.state_dir(tags[-1])).decided) if tags else 0


def _short(target: Path) -> str:
    here = Path.cwd()
    return shlex.quote(str(target.relative_to(here) if target.is_relative_to(here) else target))
