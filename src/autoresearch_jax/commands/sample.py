"""Text from the model of an experiment (no JAX): start the sampler, pass on what it draws.

What comes through its pipe was made by a model that an agent wrote. It is decoded here, and what
could control a terminal becomes U+FFFD.
"""

import codecs
import contextlib
import dataclasses
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.protocol import BROKEN, REFUSED
from autoresearch_jax.common.text import clean, printable
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs import environment, logs
from autoresearch_jax.jobs.launch import Launch, reader_memory
from autoresearch_jax.jobs.local import EARLY_VARIABLES
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.records import journal, tags
from autoresearch_jax.records.experiment import Experiment, refuse_without_parameters
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.sandbox import isolation, profiles
from autoresearch_jax.system import locks, visible_devices
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


def sample(
    workspace: Workspace,
    config: LoopConfig,
    tools: Tools,
    draw: Draw,
    write: Callable[[str], object],
    *,
    name: str | None = None,
) -> None:
    """Write the prompt, and then what the model makes of it, as it is drawn.

    The model is that of the experiment `name`, the best by default. KeyboardInterrupt ends it, and
    nothing of it remains. Raises UserError.
    """
    if not 0 <= draw.temperature < math.inf:
        raise UserError(
            f"--temperature {draw.temperature} should be a number from 0 on, such as 0.8."
        )
    # An argument that is not UTF-8 reaches Python as surrogates.
    prompt = draw.prompt.encode(errors="surrogateescape").decode(errors="replace")
    draw, view = dataclasses.replace(draw, prompt=prompt), tools.view
    tag, e, pinned = _choose(workspace, config.tag, name)
    artifacts = workspace.run_dir(tag, e.n) / "artifacts"
    refuse_without_parameters(e, artifacts)
    with (
        disk_errors(),
        locks.own_folder(workspace.home / "runs", "sample") as (folder, lock),
        contextlib.ExitStack() as stack,
    ):
        # Beside a training, this would slow it down and make its score worse.
        what = f"autoresearch-jax sample in {workspace.root}"
        device_locks = locks.devices(visible_devices.device_names(), what, view)
        for handle in device_locks:
            stack.callback(os.close, handle)
        frozen, cache = folder / "frozen", workspace.home / "sampler-cache"
        frozen.mkdir()
        cache.mkdir(parents=True, exist_ok=True)  # no score is compiled from it
        candidates = Candidates(workspace, tag)
        for file in FROZEN:
            (frozen / file).write_bytes(candidates.blob(e.commit, file))
        data = environment.data_of(workspace, frozen, pinned, e)
        view.live("checking the accelerator")
        _, chosen = environment.probe(workspace.home, config.isolation, config.require_isolation)
        view.live("reading the model")
        pipe, spec, scratch = folder / "text", folder / "spec.json", folder / "scratch"
        os.mkfifo(pipe, 0o600)
        sandbox = profiles.sampler(
            data,
            scratch=isolation.fresh(scratch),
            readable=(spec, frozen, artifacts),
            writable=(cache, pipe),
        )
        own = profiles.scorer_environment(workspace.home, cache) | EARLY_VARIABLES
        variables = isolation.environment(os.environ, scratch) | own
        launch = Launch(chosen.level, sandbox, variables, keep_fds=(*device_locks, lock))
        asked = {
            "frozen": str(frozen),
            "artifacts": str(artifacts),
            "data": data.fingerprint,
            "text": str(pipe),
            "out": str(scratch / "answer.json"),
            **dataclasses.asdict(draw),
        }
        spec.write_text(json.dumps(asked))
        with _reading(pipe, draw.prompt, write, view) as reader:
            _run(launch, spec, e, reader)


def _choose(
    workspace: Workspace, tag: str | None, name: str | None
) -> tuple[str, Experiment, str | None]:
    """Return the tag, the experiment, and the fingerprint of the data that it was trained on.

    Raises UserError if nothing was measured.
    """
    tag = tags.existing(workspace, tag)
    experiments = journal.read(workspace.state_dir(tag)) if tag else Experiments()
    if tag is None or experiments.first is None:
        raise UserError(
            "nothing was measured here yet, so there is no model: autoresearch-jax loop"
        )
    chosen = experiments.best if name is None else experiments.find(name)
    if chosen is None:
        raise UserError(f"tag {tag} has no model with a score yet: autoresearch-jax loop")
    return tag, chosen, experiments.first.fingerprint.get("data")


def _run(launch: Launch, spec: Path, e: Experiment, reader: "Reader") -> None:
    """Run the sampler until it has ended. Raises UserError, KeyboardInterrupt."""
    log = spec.with_name("log")
    arguments = ["-I", "-m", "autoresearch_jax.sampler", str(spec)]
    frozen = spec.parent / "frozen"
    running = launch.start(arguments, cwd=frozen, log=log, memory_bytes=reader_memory())
    # Without a limit: the person sees what comes, and may end it.
    ended = running.wait(limit_s=math.inf, abandoned=lambda: reader.closed)
    returncode = launch.returncode(ended)
    if returncode == 0 or reader.closed:
        return
    if returncode not in (REFUSED, BROKEN):
        why = f"signal {-returncode}"
        if returncode > 0:
            why = clean(logs.crash_reason(logs.read_tail(log)))
        raise UserError(
            f"sampling from experiment {e.n} failed: {why}. See whether it can still be scored: "
            f"autoresearch-jax verify {e.n}"
        )
    answer = json.loads((launch.sandbox.scratch / "answer.json").read_bytes())
    if returncode == BROKEN:
        raise UserError(answer["broken"])
    why = clean(f"{answer['refused']}: {answer['detail']}", logs.REASON_LIMIT)
    raise UserError(
        f"the model of experiment {e.n} is refused: {why}. Choose another one: "
        "autoresearch-jax sample --experiment N"
    )


class Reader:
    """Writes what comes through a pipe, after the prompt, as harmless text."""

    def __init__(self, prompt: str, write: Callable[[str], object], view: View) -> None:
        self.closed = False  # nobody reads what is written any more
        self._prompt, self._write, self._view = prompt, write, view

    def run(self, handle: int) -> None:
        """Read until the pipe's last writer has closed it."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        begun = False
        while data := os.read(handle, READ_BYTES):
            if not begun:
                begun = True
                self._view.live("")
                self._put(self._prompt)
            self._put(decoder.decode(data))
        if begun:
            self._put(decoder.decode(b"", final=True) + "\n")

    def _put(self, text: str) -> None:
        if not text or self.closed:
            return
        try:
            self._write(printable(text, "\ufffd"))
        except (OSError, ValueError):
            self.closed = True


@contextlib.contextmanager
def _reading(
    pipe: Path, prompt: str, write: Callable[[str], object], view: View
) -> Iterator[Reader]:
    """Read a pipe in a thread while entered."""
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    ours = os.open(pipe, os.O_WRONLY)  # until it is closed, the reader waits for more
    os.set_blocking(handle, True)
    reader = Reader(prompt, write, view)
    thread = threading.Thread(target=reader.run, args=(handle,), daemon=True)
    thread.start()
    try:
        yield reader
    finally:
        os.close(ours)
        thread.join()
        os.close(handle)
