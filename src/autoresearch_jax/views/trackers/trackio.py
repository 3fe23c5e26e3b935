"""Runs of Trackio, on this machine: only here can they be replaced. `trackio sync` uploads them."""

import contextlib
import io
import os
import shlex
from pathlib import Path
from typing import Any

from autoresearch_jax.views.trackers.logged import PROJECT, Logged

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID")


class Trackio:
    """Writes runs to a project for each tag, below $TRACKIO_DIR or else `folder`."""

    def __init__(self, folder: Path) -> None:
        for name in ELSEWHERE:
            os.environ.pop(name, None)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it would look up the user's name
        self.target = os.environ.setdefault("TRACKIO_DIR", str(folder))
        self.look = f"TRACKIO_DIR={shlex.quote(self.target)} trackio show"
        self._known: dict[str, dict[str, str]] = {}  # by project: Trackio's id of each run, by ours

    def write(self, run: Logged) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces each run
            self._write(run)

    def _write(self, run: Logged) -> None:
        import trackio

        project = f"{PROJECT}-{run.tag}"
        if project not in self._known:
            configs = ((one.id, one.config or {}) for one in _runs(project))
            self._known[project] = {str(found.get("id")): there for there, found in configs}
        if old := self._known[project].pop(run.id, None):
            for one in _runs(project):
                if one.id == old:
                    one.delete()
        made = trackio.init(
            project=project,
            name=run.name,
            group=run.status or None,
            config={"id": run.id, "status": run.status, **run.facts, **run.constants},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for row in run.rows:
            made.log(dict(row.values), step=row.step)
        last: dict[str, Any] = dict(run.numbers)
        if run.diff:
            block = "".join(f"    {line}\n" for line in run.diff.splitlines())
            last["diff"] = trackio.Markdown(block)
        made.log(last or {"experiment": run.at}, step=max([run.at, *(r.step for r in run.rows)]))
        trackio.finish()
        self._known[project][run.id] = made.id


def _runs(project: str) -> list[Any]:
    import trackio

    try:
        return list(trackio.Api().runs(project))
    except ValueError:  # there is no such project yet
        return []
