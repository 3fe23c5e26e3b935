"""Sends one digest of a loop, or the news that it was killed or abandoned.

    python -m autoresearch_jax.commands.digest

`watchdog.py` starts it with a line of JSON as standard input. It prints why nothing could be sent,
and only what was sent counts as told.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

from autoresearch_jax.common.text import clean
from autoresearch_jax.loop import sending
from autoresearch_jax.loop.sending import TEXT_LIMIT
from autoresearch_jax.records import endings
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.system import locks
from autoresearch_jax.views import digest, plot
from autoresearch_jax.views.watch import live_model
from autoresearch_jax.views.watch.live_model import JournalReader, LiveModel

GONE = "the loop was killed, and its records are gone"


def send(*, root: str, tag: str, pid: int, to: str, digests: bool, last: bool, **_: object) -> None:
    """Send what is new under a tag; `last`: its loop, of process `pid`, has ended. Raises Unsent.

    Without `digests` only the death of the loop is news.
    """
    experiments, reader = Experiments(), None
    with contextlib.suppress(Exception):  # whatever is left of the workspace, its end is news
        reader = live_model.open_reader(Path(root), tag)
        model = reader.read()
    if isinstance(reader, JournalReader):
        experiments = reader.experiments
    began, ended = experiments.loop, experiments.ended
    if last and began is not None and began.pid != pid:
        return  # the next loop has begun, and says what became of this one
    ending = clean(endings.words(experiments) or GONE, TEXT_LIMIT) if last else ""
    killed = last and (ended is None or ended.stopped == "abandoned")
    if digests and began is not None and isinstance(reader, JournalReader):
        _send_digest(reader, model, to, "killed" if killed else "digest", ending)
    elif killed:
        sending.send(to, "killed", clean(f"autoresearch/{tag}: {ending}", TEXT_LIMIT))


def _send_digest(reader: JournalReader, model: LiveModel, to: str, event: str, ending: str) -> None:
    assert reader.tag is not None
    state, experiments = reader.workspace.state_dir(reader.tag), reader.experiments
    with locks.exclusive(state / "digest.lock"):  # the loop before may be sending its last one
        covered = digest.everything(experiments)
        told = digest.read(state) or covered
        if not ending and len(model.entries) <= told.decided:
            return
        words = digest.text(model, experiments, told, ending)
        with tempfile.TemporaryDirectory(prefix="autoresearch-notify-") as folder:
            sending.send(to, event, words, _picture(model, Path(folder) / "progress.png"))
        digest.write(state, covered)


def _picture(model: LiveModel, path: Path) -> Path | None:
    """Draw the picture; None if the disk is full, which must not hold back the text."""
    try:
        plot.progress(model.entries, model.summary, path, model.title)
    except OSError:
        return None
    return path


if __name__ == "__main__":
    try:
        send(**json.loads(sys.stdin.readline()))
    except sending.Unsent as error:
        print(error)
