"""Event files of TensorBoard, written by its own package, which needs no TensorFlow.

A run is a folder with one file that is never changed: a newer one takes its place.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoresearch_jax.views.trackers.logged import Logged

FILE_VERSION = "brain.Event:2"  # the format of the records


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
        old = sorted(folder.glob("events.out.tfevents.*"))
        # TensorBoard reads files in the order of their names.
        number = int(old[-1].name.rpartition(".")[2]) + 1 if old else 0
        made = folder / f"being-written-{number}"
        with made.open("wb") as file:
            writer = RecordWriter(file)
            for event in _events(run):
                writer.write(event.SerializeToString())
        made.rename(folder / f"events.out.tfevents.{number:010d}")
        for path in old:
            path.unlink(missing_ok=True)


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
    """Yield what the tab HPARAMS shows of an experiment: its constants."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import (
        HParamsPluginData,
        SessionEndInfo,
        SessionStartInfo,
    )

    if not run.constants:
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
    ended = api_pb2.STATUS_FAILURE if run.status == "crash" else api_pb2.STATUS_SUCCESS
    end = SessionEndInfo(status=ended, end_time_secs=run.finished or run.started)
    for tag, data in (
        (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
    ):
        found = metadata.create_summary_metadata(data)
        yield Summary.Value(tag=tag, metadata=found, tensor=metadata.NULL_TENSOR)
