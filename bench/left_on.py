"""Whether the views are still right when they have been left on for long, and what they hold then.

    uv run bench/left_on.py [--hours 2] [--every 10] [--json]

In a made-up recording an experiment is decided every so many seconds, and the log of the running
one grows every three. The terminal is resized each minute; halfway the page's server is
ended and started again. `terminal_mb`, `server_mb`: memory of the two processes; `page_mb`: the
page's objects after a collection; `page_nodes`: its document's. Each after one minute and at the
end, with `terminal_mb_new` of a view opened just then. `same`: whether terminal and page show at
the end what new ones show. Needs tmux, chromium and chromedriver.
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psutil

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from tests import watch_helpers as helpers

LOG_SECONDS = 3.0  # between two lines of a training (kit/progress.py)
RESIZE_SECONDS = 60.0
SIZES = [(80, 24), (160, 50), (60, 15)]
SETTLE_SECONDS = 60.0  # until the first figures; at the end until all is shown
SHOWN = f"""return JSON.stringify([model.points, {helpers.marks()},
    document.querySelector('table').innerText, document.title])"""


@click.command()
@click.option("--hours", default=2.0, type=click.FloatRange(min=0.05), show_default=True)
@click.option("--every", default=10.0, show_default=True, help="Seconds between two decisions.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(hours: float, every: float, as_json: bool) -> None:
    """Measures, and prints."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), 3600 * hours, every)
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name:<16}{value}")


def measure(folder: Path, seconds: float, every: float) -> dict[str, Any]:
    recording = helpers.Recording(folder / "w", 30)
    recording.live()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        contextlib.ExitStack() as servers,
        terminal(folder / "old", recording, SIZES[0]) as old,
        helpers.browser(folder) as driver,
    ):
        server = servers.enter_context(serve(recording, port))
        driver.get(f"http://127.0.0.1:{port}/")
        page = driver.current_window_handle
        begun, resized, restarted, first = time.monotonic(), 0, False, {}
        n, since = recording.propose(), begun
        while (passed := time.monotonic() - begun) < seconds:
            recording.log(n, min(100.0, 100 * (time.monotonic() - since) / every))
            if time.monotonic() - since > every:
                recording.decide(helpers.score_of(n), n)
                n, since = recording.propose(), time.monotonic()
            if passed > (resized + 1) * RESIZE_SECONDS:
                resized += 1
                resize(old, SIZES[resized % len(SIZES)])
            if passed > SETTLE_SECONDS and not first:
                first = held(old, server, driver)
            if passed > seconds / 2 and not restarted:
                servers.close()
                server, restarted = servers.enter_context(serve(recording, port)), True
            time.sleep(LOG_SECONDS)
        recording.decide(helpers.score_of(n), n)
        resize(old, SIZES[0])
        time.sleep(SETTLE_SECONDS)
        last = held(old, server, driver)
        with terminal(folder / "new", recording, SIZES[0]) as new:
            time.sleep(LOG_SECONDS)
            # The first line has the time of day.
            same = {"terminal": old.lines()[1:] == new.lines()[1:]}
            fresh = round(memory_mb(watcher(new)), 1)
        seen = driver.execute_script(SHOWN)
        driver.switch_to.new_window("tab")
        driver.get(f"http://127.0.0.1:{port}/")
        helpers.until(driver, f"return ({helpers.marks()}) >= {recording.count}")
        same["page"] = seen == driver.execute_script(SHOWN)
        driver.switch_to.window(page)
        errors = [one for one in driver.get_log("browser") if "net::ERR" not in one["message"]]
    return {
        "hours": seconds / 3600,
        "experiments": recording.count,
        "resizes": resized,
        **{name: [round(first[name], 1), round(last[name], 1)] for name in last},
        "terminal_mb_new": fresh,
        "same": same,
        "page_errors": len(errors),
    }


@contextlib.contextmanager
def terminal(
    folder: Path, recording: helpers.Recording, size: tuple[int, int]
) -> Iterator[helpers.Terminal]:
    """`watch` in a terminal of its own."""
    folder.mkdir()
    one = helpers.Terminal(folder, *size)
    try:
        one.watch(recording.workspace.root)
        one.until("q ends")
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def serve(recording: helpers.Recording, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`watch --web`, once it answers."""
    root = str(recording.workspace.root)
    words = [*helpers.COMMAND, "-C", root, "watch", "--web", "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + helpers.DEADLINE_SECONDS
            while time.monotonic() < until:
                with contextlib.suppress(OSError):
                    helpers.get(port, "/")
                    break
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()


def resize(one: helpers.Terminal, size: tuple[int, int]) -> None:
    one("resize-window", "-x", str(size[0]), "-y", str(size[1]))


def held(one: helpers.Terminal, server: subprocess.Popen[bytes], driver: Any) -> dict[str, float]:
    """What the views hold now; memory in MiB."""
    driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    driver.execute_cdp_cmd("Performance.enable", {})
    metrics = {
        metric["name"]: metric["value"]
        for metric in driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    }
    return {
        "terminal_mb": memory_mb(watcher(one)),
        "server_mb": memory_mb(psutil.Process(server.pid)),
        "page_mb": metrics["JSHeapUsedSize"] / 2**20,
        "page_nodes": metrics["Nodes"],
    }


def memory_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def watcher(one: helpers.Terminal) -> psutil.Process:
    """The `watch` in a terminal."""
    shell = psutil.Process(int(one("display-message", "-p", "#{pane_pid}")))
    (found,) = [
        process for process in shell.children(recursive=True) if "watch" in process.cmdline()
    ]
    return found


if __name__ == "__main__":
    main()
