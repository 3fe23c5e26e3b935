"""Runs of Weights & Biases: offline by default, online where the user is logged in."""

import netrc
import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autoresearch_jax.common import files
from autoresearch_jax.views.trackers.logged import PROJECT, Logged

HOST = "https://api.wandb.ai"
START_SECONDS = 300  # for its own process, which runs only while the cores are idle


class WandB:
    """Writes runs to the project of $WANDB_PROJECT, and those that are offline below `folder`."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB__SERVICE_WAIT", str(START_SECONDS))
        self._folder = folder
        self._project = os.environ.get("WANDB_PROJECT") or PROJECT
        self._mode: Any = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        given = (os.environ.get(name) for name in ("WANDB_BASE_URL", "WANDB_ENTITY"))
        self.target = f"{self._mode} {self._project} {folder} {[*given]}"
        self.look = f"wandb leet {shlex.quote(str(folder / 'wandb'))}"
        if self._mode == "online":
            self.look = f"the project {self._project} of your account"

    def write(self, run: Logged) -> None:
        import wandb

        if self._mode == "offline":
            for old in (self._folder / "wandb").glob(f"offline-run-*-{run.id}"):
                files.remove(old)
        self._folder.mkdir(parents=True, exist_ok=True)
        made = wandb.init(
            project=self._project,
            id=run.id,
            name=run.name,
            group=run.tag,
            notes=run.description,
            tags=[run.status] if run.status else [],
            allow_val_change=True,
            config={**run.facts, "status": run.status, "constants": dict(run.constants)},
            dir=self._folder,
            mode=self._mode,
            resume="allow",
            reinit="create_new",
            # Of what it would collect by itself, nothing is of the training.
            settings=wandb.Settings(
                console="off",
                silent=True,
                host="",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                init_timeout=START_SECONDS,
            ),
        )
        try:
            for row in run.rows:
                if row.step >= made.step:  # a run that is continued online has the others
                    made.log({**row.values, "_timestamp": row.time}, step=row.step)
            made.summary.update(dict(run.numbers))
            if run.diff:
                (Path(made.dir) / "train.diff").write_text(run.diff, encoding="utf-8")
        finally:
            made.finish(exit_code=int(run.status == "crash"))


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or HOST).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
