"""Text from the model of an experiment (no JAX): start the sampler, pass on what it draws.

What comes through its pipe was made by a model that an agent wrote. It is decoded here, and what
could steer a terminal becomes U+FFFD.
"""

import codecs
import contextlib
import dataclasses
import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common import files
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import BROKEN, REFUSED
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import DataError, Manifest
from autoresearch_jax.jobs import environment, logs
from autoresearch_jax.jobs.local import EARLY_VARIABLES
from autoresearch_jax.records import journal, tags
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import FROZEN, Workspace
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.system import locks, process, visible_devices
from autoresearch_jax.system.disk_errors import disk_errors

READ_BYTES = 1 << 12


@dataclass(frozen=True)
class Draw:
    """How text is drawn."""

    prompt: str = ""
    tokens: int = 100  # drawn after the prompt
    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int | None = None  # only the likeliest so many; None: all
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """What is sampled from."""

    n: int  # of its experiment
    artifacts: Path
    frozen: Path  # a folder with its prepare.py and constants.py
    data: Manifest


def sample(
    workspace: Workspace,
    draw: Draw,
    write: Callable[[str], object],
    *,
    view: View,
    name: str | None = None,
    tag: str | None = None,
    wanted: str = "auto",
    required: str | None = None,
) -> None:
    """Writes the prompt, and then what the model makes of it, as it is drawn.

    The model is that of the experiment `name`, the best by default; `wanted` and `required` are
    isolation levels. KeyboardInterrupt ends it, and nothing of it is left. Raises UserError.
    """
    if not 0 <= draw.temperature < math.inf:
        raise UserError(f"--temperature {draw.temperature}: it is a number from 0 on, such as 0.8")
    # The words of an argument that is no UTF-8 reach Python as surrogates.
    prompt = draw.prompt.encode(errors="surrogateescape").decode(errors="replace")
    draw = dataclasses.replace(draw, prompt=prompt)
    tag, e, pinned = choose(workspace, name, tag)
    artifacts = workspace.run_dir(tag, e.n) / "artifacts"
    refuse_unkept(e, artifacts)
    with disk_errors(), _own_folder(workspace) as folder, _devices(workspace, view) as handles:
        frozen = folder / "frozen"
        frozen.mkdir()
        ratchet = Candidates(workspace, tag)
        for file in FROZEN:
            (frozen / file).write_bytes(ratchet.blob(e.commit, file))
        model = Model(e.n, artifacts, frozen, _data(workspace, frozen, pinned, e))
        view.live("looking at the accelerator")
        _, chosen = environment.probe(workspace.home, wanted, required)
        view.live("reading the model")
        with _reading(folder / "text", draw.prompt, write, view) as reader:
            _run(workspace, model, draw, reader, level=chosen.level, keep_fds=handles)


def choose(
    workspace: Workspace, name: str | None, tag: str | None
) -> tuple[str, Experiment, str | None]:
    """The tag, the experiment, and the fingerprint of the data it was trained on.

    Raises UserError where nothing was measured.
    """
    tag = tags.existing(workspace, tag)
    experiments = journal.read(workspace.state_dir(tag)) if tag else Experiments()
    if tag is None or experiments.first is None:
        raise UserError(
            "nothing was measured here yet, so there is no model: autoresearch-jax loop"
        )
    chosen = experiments.best if name is None else experiments.find(name)
    if chosen is None:
        raise UserError(f"tag {tag} has no model that was scored yet: autoresearch-jax loop")
    return tag, chosen, experiments.first.fingerprint.get("data")


def refuse_unkept(e: Experiment, artifacts: Path) -> None:
    """Raises UserError where an experiment's model is not there any more, or not yet."""
    if e.status == Status.KEEP and artifacts.is_dir():
        return
    if e.status is None:
        raise UserError(f"experiment {e.n} is not decided yet: autoresearch-jax results")
    what = "was kept too long ago" if e.status == Status.KEEP else f"is a {e.status}"
    raise UserError(
        f"experiment {e.n} {what}, so its parameters are gone: only those of the last kept ones "
        "stay. `autoresearch-jax results --kept-only` lists them, the newest last."
    )


def _data(workspace: Workspace, frozen: Path, pinned: str | None, e: Experiment) -> Manifest:
    """The data that a model was trained on, for its tokenizer. Raises UserError."""
    same = manifest.frozen_hashes(workspace.root) == manifest.frozen_hashes(frozen)
    try:
        return manifest.load(workspace.root if same else frozen, splits=(), fingerprint=pinned)
    except DataError as error:
        if same:
            raise
        raise UserError(
            f"{' or '.join(FROZEN)} in {workspace.root} is not what experiment {e.n} was trained "
            "with, and data for its own is not there any more. Put them back, then "
            f"`uv run prepare.py`: git -C {workspace.root} checkout {e.commit[:7]} -- "
            f"{' '.join(FROZEN)}"
        ) from error


@contextlib.contextmanager
def _own_folder(workspace: Workspace) -> Iterator[Path]:
    workspace.home.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sample-", dir=workspace.home))
    try:
        yield folder
    finally:
        files.remove(folder)


@contextlib.contextmanager
def _devices(workspace: Workspace, view: View) -> Iterator[tuple[int, ...]]:
    """The machine's devices are held: a training beside this would be slower, and score worse."""
    what = f"autoresearch-jax sample in {workspace.root}"
    handles = tuple(locks.devices(visible_devices.device_names(), what, view))
    try:
        yield handles
    finally:
        for handle in handles:
            os.close(handle)


def _run(
    workspace: Workspace,
    model: Model,
    draw: Draw,
    reader: "Reader",
    *,
    level: str,
    keep_fds: tuple[int, ...],
) -> None:
    """Runs the sampler until it has ended. Raises UserError, KeyboardInterrupt."""
    cache = workspace.home / "sampler-cache"  # no score is compiled from it
    cache.mkdir(parents=True, exist_ok=True)
    folder = reader.pipe.parent
    scratch = isolation.fresh(folder / "scratch")
    out, spec, log = scratch / "answer.json", folder / "spec.json", folder / "log"
    asked = {
        "frozen": str(model.frozen),
        "artifacts": str(model.artifacts),
        "data": model.data.fingerprint,
        "text": str(reader.pipe),
        "out": str(out),
        **dataclasses.asdict(draw),
    }
    spec.write_text(json.dumps(asked))
    readable = (spec, model.frozen, model.artifacts)
    sandbox = profiles.sampler(
        model.data, scratch=scratch, readable=readable, writable=(cache, reader.pipe)
    )
    own = profiles.scorer_environment(workspace.home, cache) | EARLY_VARIABLES
    argv = [sys.executable, "-I", "-m", "autoresearch_jax.sampler", str(spec)]
    ended = process.run(
        isolation.wrap(level, argv, sandbox),
        cwd=model.frozen,
        env=profiles.environment(os.environ, sandbox) | own,
        stdout=log,
        limit_s=math.inf,  # the person sees what comes, and may end it
        abandoned=lambda: reader.closed,
        keep_fds=keep_fds,
    )
    returncode = isolation.signal_of(level, ended.returncode)
    if returncode == 0 or reader.closed:
        return
    if returncode not in (REFUSED, BROKEN):
        tail = logs.read_tail(log)
        why = f"signal {-returncode}" if returncode < 0 else logs.crash_reason(tail)
        raise UserError(
            f"sampling from experiment {model.n} failed: {clean(why)}. Whether its score "
            f"can be computed again says more: autoresearch-jax verify {model.n}"
        )
    answer = json.loads(out.read_bytes())
    if returncode == BROKEN:
        raise UserError(answer["broken"])
    why = clean(f"{answer['refused']}: {answer['detail']}", logs.REASON_LIMIT)
    raise UserError(
        f"what experiment {model.n} left is not sampled from: {why}. Choose another one: "
        "autoresearch-jax sample --experiment N"
    )


# ---------------------------------------------------------------------------------- text


class Reader:
    """Writes what comes through a pipe, after the prompt, as harmless text."""

    def __init__(self, pipe: Path, prompt: str, write: Callable[[str], object], view: View) -> None:
        self.pipe = pipe
        self.begun = False  # something has come
        self.closed = False  # nobody takes what is written any more
        self._prompt, self._write, self._view = prompt, write, view

    def run(self, handle: int) -> None:
        """Reads until the pipe's last writer has closed it."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while data := os.read(handle, READ_BYTES):
            self.begin()
            self.write(decoder.decode(data))
        self.write(decoder.decode(b"", final=True))

    def begin(self) -> None:
        if not self.begun:
            self.begun = True
            self._view.live("")
            self.write(self._prompt)

    def write(self, text: str) -> None:
        if not text or self.closed:
            return
        try:
            self._write(printable(text, "\ufffd"))
        except (OSError, ValueError):  # it goes to a pipe that nobody reads any more
            self.closed = True


@contextlib.contextmanager
def _reading(
    pipe: Path, prompt: str, write: Callable[[str], object], view: View
) -> Iterator[Reader]:
    """A pipe that is read, in a thread, while entered."""
    os.mkfifo(pipe, 0o600)
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    ours = os.open(pipe, os.O_WRONLY)  # so that it ends when we say so
    os.set_blocking(handle, True)
    reader = Reader(pipe, prompt, write, view)
    thread = threading.Thread(target=reader.run, args=(handle,), daemon=True)
    thread.start()
    try:
        yield reader
    finally:
        os.close(ours)
        thread.join()
        os.close(handle)
        if reader.begun:
            reader.write("\n")
