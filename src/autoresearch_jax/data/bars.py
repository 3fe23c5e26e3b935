"""The progress of a preparation: bars on a terminal, lines elsewhere."""

import io
import sys
import time

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

LINE_SECONDS = 10.0  # between two lines in a file


class Bars(Progress):
    """Bars on a terminal, and in a pipe or a file a line at times."""

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal may lack the signs of a bar
        self._next_line = time.monotonic() + LINE_SECONDS
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            console=Console(markup=False, emoji=False, highlight=False, soft_wrap=True),
        )

    def get_renderable(self) -> RenderableType:
        now, running = time.monotonic(), [task for task in self.tasks if not task.finished]
        if running and now > self._next_line and not self.console.is_terminal:
            self._next_line, task = now + LINE_SECONDS, running[-1]
            of = "" if task.total is None else f" of {task.total:,.0f}"
            unit = task.fields["unit"]
            self.console.print(f"{task.description}: {task.completed:,.0f}{of} {unit}")
        return super().get_renderable()


def finish(progress: Progress, task: TaskID) -> None:
    """Show a task as done, whose files may have been made before."""
    done = progress.tasks[task].total or progress.tasks[task].completed
    progress.update(task, total=done, completed=done)
