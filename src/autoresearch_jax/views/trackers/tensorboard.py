"""Event files of TensorBoard, written by its own package, which needs no TensorFlow.

A run is a folder with one file; when the run has changed, another one takes its place.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoresearch_jax.views.trackers.logged import UNDECIDED, Logged

FILE_VERSION = "brain.Event:2"  # the format of the records
FILE = "events.out.tfevents."  # then the number of the file
EMPTY = 10  # files that remain without content
STATUS = {"crash": "FAILURE", UNDECIDED: "RUNNING"}


class TensorBoard:
    """Writes the folders of runs below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.target = str(folder)
        self.look = f"tensorboard --logdir {shlex.quote(self.target)}"

    def write(self, run: Logged) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = self._folder / run.path
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(folder.glob(f"{FILE}*"))
        number = int(old[-1].name.removeprefix(FILE)) + 1 if old else 0
        made = folder / "being-written"
        with made.open("wb") as file:
            writer = RecordWriter(file)
            for event in _events(run):
                writer.write(event.SerializeToString())
        made.rename(folder / f"{FILE}{number:010d}")
        # A TensorBoard that is open reads files in the order of their names, and never leaves one
        # that is gone.
        for path in old[:-EMPTY]:
            path.unlink()
        for path in old[-EMPTY:]:
            os.truncate(path, 0)


def _events(run: Logged) -> Iterator[Any]:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary

    yield Event(wall_time=run.started, file_version=FILE_VERSION)
    # A TensorBoard that has read an older file of this run forgets it here.
    yield Event(wall_time=run.started, session_log=SessionLog(status=SessionLog.START))
    values = [*_texts(run), *_hparams(run)]
    yield Event(wall_time=run.started, step=run.at, summary=Summary(value=values))
    for row in run.rows:
        yield _scalars(row.time, row.step, row.values)
    yield _scalars(run.finished or run.started, run.at, run.numbers)


def _scalars(time: float, step: int, found: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in found.items()]
    return Event(wall_time=time, step=step, summary=Summary(value=values))


def _texts(run: Logged) -> Iterator[Any]:
    """Yield what the tab TEXT shows, as Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text import metadata
    from tensorboard.util import tensor_util

    # No text can end an indented block.
    texts = {
        "description": [run.description],
        "facts": [f"{name}: {text}" for name, text in run.facts.items()],
        "diff": run.diff.splitlines(),
    }
    for name, lines in texts.items():
        if lines:
            block = "".join(f"    {line}\n" for line in lines)
            yield Summary.Value(
                tag=name,
                metadata=metadata.create_summary_metadata(name, ""),
                tensor=tensor_util.make_tensor_proto([block.encode()]),
            )


def _hparams(run: Logged) -> Iterator[Any]:
    """Yield what the tab HPARAMS shows of an experiment: its status and its constants."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import (
        HParamsPluginData,
        SessionEndInfo,
        SessionStartInfo,
    )

    if not run.status:
        return
    start = SessionStartInfo(group_name=run.path, start_time_secs=run.started)
    for name, value in {
        "description": run.description,
        "status": run.status,
        **run.constants,
    }.items():
        if isinstance(value, str):
            start.hparams[name].string_value = value
        elif isinstance(value, bool):
            start.hparams[name].bool_value = value
        else:
            start.hparams[name].number_value = value
    ended = STATUS.get(run.status, "SUCCESS")
    end = SessionEndInfo(status=f"STATUS_{ended}", end_time_secs=run.finished or run.started)
    for tag, data in (
        (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
    ):
        found = metadata.create_summary_metadata(data)
        yield Summary.Value(tag=tag, metadata=found, tensor=metadata.NULL_TENSOR)
