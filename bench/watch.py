"""What the page of `watch --web`, and the report, cost with many experiments, in a browser.

    uv run bench/watch.py [--experiments 2000] [--updates 20] [--json]

`first_view_s`: from asking for the page to a frame with every mark in it. `update_ms`: what one
more decided experiment costs the browser's main thread, script, layout and paint together; the
median, and the largest. `redraw_ms`: to draw the chart alone.
`tick_ms`: a new line in the log of the running experiment. `look_ms`: what an update costs the
server. `report_s`, `report_mb`, `report_view_s`: to write report.html, its size in MiB, and from
opening it to every mark. Milliseconds of the browser are its main thread's own: other jobs do not
add to them. Needs chromium and chromedriver.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from autoresearch_jax.views.watch import live_model, page_data, report_file
from tests import watch_helpers

SETTLE_SECONDS = 1.2  # until an update is sent, drawn and painted
WATCHER = """
(function look() {
  if ((%s) < %d) requestAnimationFrame(look);
  else requestAnimationFrame(() => { window.seenAfter = performance.now() / 1000; });
})();
"""


@click.command()
@click.option("--experiments", default=2000, show_default=True)
@click.option("--updates", default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(experiments: int, updates: int, as_json: bool) -> None:
    """Measures, and prints."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), experiments, updates)
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name:<16}{value:g}")


def measure(folder: Path, experiments: int, updates: int) -> dict[str, float]:
    found = of_page(folder, experiments, updates, ticks=10) | of_report(folder, experiments)
    return {name: round(value, 4) for name, value in found.items()}


def of_page(folder: Path, experiments: int, updates: int, ticks: int) -> dict[str, float]:
    """The page, with its server; with `ticks`, so often what else is drawn, too."""
    recording = watch_helpers.Recording(folder / "w", experiments)
    for n in (0, 1):
        recording.log(n)
    reader = live_model.open_reader(recording.workspace.root)
    begun = time.perf_counter()
    reader.read()
    found = {"experiments": float(experiments), "start_s": time.perf_counter() - begun}
    with watch_helpers.serving(reader) as port, watch_helpers.browser(folder) as driver:
        found["first_view_s"] = first_view(driver, f"http://127.0.0.1:{port}/", experiments)
        found["look_ms"] = statistics.median(look(recording, reader) for _ in range(updates))
        costs = [cost(driver, recording.add) for _ in range(updates)]
        found |= {"update_ms": statistics.median(costs), "update_ms_max": max(costs)}
        if ticks:
            layout = "chart.layout()"
            drawn = [cost(driver, lambda: driver.execute_script(layout)) for _ in range(ticks)]
            found["redraw_ms"] = statistics.median(drawn)
            recording.live()
            n = recording.propose("the next idea")
            time.sleep(SETTLE_SECONDS)
            new = [
                cost(driver, lambda at=at: recording.log(n, percent=at))
                for at in range(10, 10 + ticks)
            ]
            found["tick_ms"] = statistics.median(new)
    return found


def of_report(folder: Path, experiments: int) -> dict[str, float]:
    """The same experiments as a file, each with the log of a training of 300 s."""
    recording = watch_helpers.Recording(folder / "logged", experiments)
    for n in range(experiments):
        recording.log(n)
    begun = time.perf_counter()
    path, *_ = report_file.write(
        live_model.open_reader(recording.workspace.root), folder / "report"
    )
    found = {"report_s": time.perf_counter() - begun, "report_mb": path.stat().st_size / 2**20}
    with watch_helpers.browser(folder) as driver:
        return found | {"report_view_s": first_view(driver, path.as_uri(), experiments)}


def first_view(driver: Any, address: str, experiments: int) -> float:
    """Seconds from the navigation to the frame after the last mark."""
    script = {"source": WATCHER % (watch_helpers.marks(), experiments)}
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    driver.get(address)
    return watch_helpers.until(driver, "return window.seenAfter")


def look(recording: watch_helpers.Recording, reader: live_model.Reader) -> float:
    """Milliseconds of reading one more experiment, and of telling it."""
    before = len(reader.read().entries)
    recording.add()
    begun = time.perf_counter()
    page_data.encode(page_data.of_model(reader.read(), before))
    return 1000 * (time.perf_counter() - begun)


def cost(driver: Any, act: Any) -> float:
    """Milliseconds of the browser's main thread that something costs, all in all."""
    time.sleep(SETTLE_SECONDS)
    before = busy(driver)
    act()
    time.sleep(SETTLE_SECONDS)
    return 1000 * (busy(driver) - before)


def busy(driver: Any) -> float:
    """Seconds that the page's main thread has worked, waits for a core left out."""
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(one["value"] for one in metrics if one["name"] == "TaskDuration")


if __name__ == "__main__":
    main()
