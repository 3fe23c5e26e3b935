"""The demo: a workspace, its data, a baseline and experiments, at a size that fits any machine."""

import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from autoresearch_jax.commands import loop, presets, setup
from autoresearch_jax.common.console import View, spell_with, typed
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.loop import config
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace, time_budget
from autoresearch_jax.system import bytecode
from autoresearch_jax.views import plot, results
from autoresearch_jax.views.summary import count, learned
from autoresearch_jax.views.watch import live_model


def demo(target: Path, console: Console, view: View, *, seed: int, experiments: int) -> None:
    """Run the demo, or the rest of an earlier one in `target`.

    Raises UserError if `target` is something else, or a step fails.
    """
    target = target.absolute()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(bytecode.prepare)  # beside the packing, of which some steps use one core
        _make(target, view)
    workspace = Workspace.open(target)
    view.say(
        f"[3/4] The baseline and {count(experiments, 'experiment')} of "
        f"{time_budget(target):g} s each: a search changes train.py, and what "
        "lowers val_bpb is kept"
    )
    here, tags = Path.cwd(), workspace.tags()
    folder = target.relative_to(here) if target.is_relative_to(here) else target
    full_size = typed("autoresearch-jax setup ../research")
    spell_with(folder)
    done = len(journal.read(workspace.state_dir(tags[-1])).decided) if tags else 0
    if done > experiments:
        again = shlex.join(["rm", "-r", str(folder)])
        view.say(f"All are recorded already. To start again from nothing: {again}")
    else:
        if done:
            view.say(f"Continuing after {count(done, 'recorded experiment')}.")
        chosen = config.resolve(target, agent="search", max=experiments, seed=seed)
        if loop.run_loop(workspace, chosen, Tools(view)).stopped != "max":
            view.say("Stopped early; the same command continues from here.")
    view.live("")  # the table is printed past the view
    view.say("[4/4] Results")
    model = live_model.read(target)
    if not model.entries:
        return
    picture = target / "progress.png"
    plot.progress(model.entries, model.summary, picture, "autoresearch-jax demo")
    results.print_results(console, model.entries, model.summary)
    best = model.summary.best
    shown = best if best is not None and best.improved else model.entries[-1]
    view.say(f"\nThe picture: {picture}")
    view.say("Next:")
    commands = {
        typed(f"autoresearch-jax show {shown.n}"): "one experiment in full",
        typed("autoresearch-jax loop --max 10"): "more experiments",
        full_size: "a workspace of full size",
    }
    width = max(map(len, commands))
    for command, purpose in commands.items():
        view.say(f"  {command:<{width}}  # {purpose}")
    for line in learned(model.entries):
        view.say(line)


def _make(target: Path, view: View) -> None:
    """Make the workspace and its data, where they are missing. Raises UserError."""
    view.say(f"[1/4] A workspace in {target}")
    if setup.is_workspace(target):
        _check_size(target)
    else:
        setup.setup(target, view, preset=presets.DEMO.name, skip_data=True)
    view.say("[2/4] Text from the Python documentation on this machine, packed into tokens")
    # Without a source it only checks whether the data is ready.
    setup.prepare(target, view, source=None if setup.data(target) else "pydocs")


def _check_size(target: Path) -> None:
    found = manifest.read_constants(target / "constants.py")
    if not presets.DEMO.constants.items() <= found.items():
        raise UserError(
            f"{target} is a workspace of another size than the demo's. Choose another folder: "
            "`autoresearch-jax demo --dir DIR`."
        )
