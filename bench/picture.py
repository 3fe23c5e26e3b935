"""The pictures of the README and of docs/watching.md: a real run of the built-in search.

    uv run bench/picture.py WORKSPACE [--experiments 60]

Makes a workspace of the demo's size, unless WORKSPACE is one already, and runs a loop in it that
measures the noise of a score, trains again what may be kept, and at its end takes out what does not
matter and audits the gain. It begins with a batch of 8,192 tokens: of the demo's 32,768 a training
takes 6 or 7, and that alone changes its score by 0.4. An interrupted run goes on.

Writes docs/progress.png, the plot with the noise band, and the page of `watch --web` with the best
experiment open: docs/watch.png, and docs/watch-phone.png as a phone shows it in dark mode. Needs
chromium and chromedriver. Takes about 25 seconds an experiment.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from rich.console import Console

from autoresearch_jax.common import literals
from autoresearch_jax.views import results, summary
from autoresearch_jax.views.watch import live_model
from tests import watch_helpers

DOCS = TOP / "docs"
BATCH = 2**13  # tokens
PAGES = {"watch.png": (1280, 860, False), "watch-phone.png": (390, 844, True)}


def search(workspace: Path, experiments: int) -> None:
    """Run the loop, or what is left of it."""

    def command(*words: str) -> None:
        program = Path(sys.executable).with_name("autoresearch-jax")
        subprocess.run([program, *words], check=True)

    if not workspace.exists():
        command("setup", str(workspace), "--preset", "demo", "--skip-data")
        prepare = [sys.executable, "prepare.py", "--source", "pydocs"]
        subprocess.run(prepare, cwd=workspace, check=True)
        train = workspace / "train.py"
        train.write_text(literals.rewrite(train.read_text(), {"TOTAL_BATCH_SIZE": BATCH}))
        git = ["git", "commit", "-q", "-m", f"A batch of {BATCH} tokens", "--", "train.py"]
        subprocess.run(git, cwd=workspace, check=True)
    model = live_model.read(workspace)
    done = len([one for one in model.entries if not one.without])  # the baseline among them
    left = experiments + 1 - done if done else experiments
    if left <= 0 and model.summary.claims.audit is None:  # the end was interrupted
        command("-C", str(workspace), "prune")
        command("-C", str(workspace), "verify", "--audit", "3")
    elif left > 0:
        command("-C", str(workspace), "loop", "--max", str(left), "--policy", "confirm", "--prune")


def photograph(workspace: Path, best: int) -> None:
    """Take the pictures of the page."""
    reader = live_model.open_reader(workspace)
    for name, (width, height, dark) in PAGES.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            watch_helpers.serving(reader) as port,
            watch_helpers.browser(Path(folder), width, height, dark) as driver,
        ):
            driver.get(f"http://127.0.0.1:{port}/#{best}")
            watch_helpers.until(driver, f"return {watch_helpers.marks()} > 0")
            watch_helpers.until(driver, "return document.querySelector('.diff') !== null")
            driver.save_screenshot(str(DOCS / name))


@click.command(help=__doc__.partition("\n")[0])
@click.argument("workspace", type=click.Path(file_okay=False, resolve_path=True, path_type=Path))
@click.option("--experiments", type=click.IntRange(min=1), default=60, show_default=True)
def main(workspace: Path, experiments: int) -> None:
    search(workspace, experiments)
    model = live_model.read(workspace)
    results.print_results(Console(), model.entries, model.summary)
    for line in summary.learned(model.entries):
        click.echo(line)
    best = model.summary.best
    assert best is not None
    photograph(workspace, best.n)
    shutil.copy(workspace / "progress.png", DOCS / "progress.png")


if __name__ == "__main__":
    main()
