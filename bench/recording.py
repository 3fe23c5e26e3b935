"""The recording of the README: the demo in a real terminal, as an animated SVG.

    uv run bench/recording.py FRAMES

Types the command into tmux, in a fresh clone whose packages are installed and with an empty cache,
and looks at the screen twice a second until the prompt is back. FRAMES keeps what was seen; if the
file exists, it is drawn again without a new recording. Writes docs/demo.svg, which shows in about
20 seconds what followed the typing, and says how much faster that is. It loads no font and no
script, and readers who prefer reduced motion see the last screen. Needs tmux and two idle cores,
which it takes for about four minutes: with other work the demo reports disturbed trainings.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from xml.sax.saxutils import escape

import click

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.segment import Segment
from rich.terminal_theme import DIMMED_MONOKAI

from tests import watch_helpers

PICTURE = TOP / "docs" / "demo.svg"
COMMAND = "uv run autoresearch-jax demo"
COLUMNS, ROWS = 114, 32
TYPING_S = 0.06  # a key
LOOK_S = 0.5
DEADLINE_S = 3600
ENVIRONMENTS = ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")  # that are not the clone's
FILM_S, REST_S = 20.0, 8.0  # how long the run and its last screen are shown, about
SCREENS_PER_S = 10  # of the film

WIDTH, HEIGHT, MARGIN, TITLE = 8.4, 19.0, 14.0, 34.0  # of a cell and around all, in pixels
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"

Frame = tuple[float, str]  # seconds since the first key, and the screen with its colours
Span = tuple[float, float]  # when something is seen, in seconds of the film


def record() -> tuple[float, list[Frame]]:
    """Return the second in which the command began, and the screens."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "autoresearch-jax"
        cache = str(Path(name) / "cache")
        subprocess.run(["git", "clone", "-q", TOP, clone], check=True)
        own = {name: text for name, text in os.environ.items() if name not in ENVIRONMENTS}
        subprocess.run(["uv", "sync", "-q"], cwd=clone, env=own, check=True)
        terminal = watch_helpers.Terminal(Path(name), COLUMNS, ROWS, AUTORESEARCH_HOME=cache)
        try:
            terminal.keys(f"unset {' '.join(ENVIRONMENTS)}; cd {clone}; clear")
            terminal.keys("Enter")
            time.sleep(1)
            begun, frames = time.monotonic(), list[Frame]()

            def look() -> None:
                screen = terminal("capture-pane", "-e", "-p")
                if not frames or frames[-1][1] != screen:
                    frames.append((time.monotonic() - begun, screen))

            look()
            for key in COMMAND:
                terminal("send-keys", "-l", key)
                time.sleep(TYPING_S)
                look()
            typed_s = time.monotonic() - begun
            terminal.keys("Enter")
            while time.monotonic() - begun < DEADLINE_S:
                time.sleep(LOOK_S)
                look()
                if terminal.lines()[-1].strip() == "$" and len(terminal.lines()) > 1:
                    return typed_s, frames
            raise SystemExit("The demo did not end within an hour.")
        finally:
            terminal.close()


# ------------------------------------------------------------------------------------- drawing


def drawn(row: int, segments: list[Segment]) -> str:
    """Return one line of the screen as SVG."""
    parts, column = [], 0
    for text, style, _ in segments:
        if text.strip():
            left = column + len(text) - len(text.lstrip())
            words = text.strip()
            look = ""
            if style and style.color and not style.color.is_default:
                rgb = style.color.get_truecolor(DIMMED_MONOKAI)
                look += f' fill="{rgb.hex}"'
            if style and style.bold:
                look += ' font-weight="bold"'
            if style and style.dim:
                look += ' opacity=".6"'
            x, length = MARGIN + left * WIDTH, len(words) * WIDTH
            parts.append(
                f'<text x="{x:.1f}" y="{TITLE + (row + 1) * HEIGHT:.0f}" '
                f'textLength="{length:.1f}"{look}>{escape(words)}</text>'
            )
        column += len(text)
    return "".join(parts)


def lines(screen: str) -> list[str]:
    """Return the lines of a screen as SVG."""
    console = Console(width=COLUMNS, color_system="truecolor", legacy_windows=False)
    return [
        drawn(row, list(line.render(console, end="")))
        for row, line in enumerate(AnsiDecoder().decode(screen.rstrip("\n")))
    ]


def spans(typed_s: float, faster: int, frames: list[Frame]) -> tuple[float, dict[Span, list[str]]]:
    """Return the film's seconds, and the lines by when they are seen."""

    def film(seconds: float) -> float:
        passed = min(seconds, typed_s) + max(0.0, seconds - typed_s) / faster
        return int(passed * SCREENS_PER_S) / SCREENS_PER_S

    screens = {film(seconds): screen for seconds, screen in frames}  # the last one at each time
    total = max(screens) + REST_S
    found: dict[Span, list[str]] = defaultdict(list)
    shown: dict[int, tuple[float, str]] = {}  # by row: since when, and what
    for now, screen in [*screens.items(), (total, "")]:
        new = dict(enumerate(lines(screen))) if screen else {}
        for row in shown.keys() | new.keys():
            since, old = shown.get(row, (now, ""))
            if old != new.get(row, ""):
                if old:
                    found[since, now].append(old)
                shown[row] = (now, new.get(row, ""))
    return total, found


def svg(typed_s: float, frames: list[Frame]) -> str:
    """Return the recording as an SVG whose lines appear and vanish by CSS."""
    faster = max(1, round((frames[-1][0] - typed_s) / FILM_S))
    total, found = spans(typed_s, faster, frames)
    width, height = 2 * MARGIN + COLUMNS * WIDTH, TITLE + ROWS * HEIGHT + MARGIN
    rules, groups = [], []
    for number, ((since, until), texts) in enumerate(sorted(found.items())):
        last = until >= total
        first, end = 100 * since / total, 100 * until / total
        steps = f"0%{{visibility:{'visible' if since == 0 else 'hidden'}}}"
        steps += f"{first:.2f}%{{visibility:visible}}" if since else ""
        steps += "" if last else f"{end:.2f}%,to{{visibility:hidden}}"
        rules.append(f"@keyframes k{number}{{{steps}}}#g{number}{{animation-name:k{number}}}")
        kind = "last" if last else "gone"
        groups.append(f'<g id="g{number}" class="{kind}">{"".join(texts)}</g>')
    note = f"{faster} times as fast as it was"
    box = f'viewBox="0 0 {width:g} {height:g}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" fill="#d9d9d9">
<title>{COMMAND}, {note}</title>
<style>
text{{font:14px {FONT};white-space:pre}}
g{{animation:{total:.2f}s step-end infinite}}
@media (prefers-reduced-motion:reduce){{g{{animation:none!important}}.gone{{visibility:hidden}}}}
{"".join(rules)}
</style>
<rect width="{width:g}" height="{height:g}" rx="8" fill="#191919"/>
<text x="{width / 2:g}" y="22" text-anchor="middle" opacity=".6">{note}</text>
{"".join(groups)}
</svg>
"""


@click.command(help=__doc__.partition("\n")[0])
@click.argument("file", metavar="FRAMES", type=click.Path(dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    if not file.exists():
        file.write_text(json.dumps(record()))
    typed_s, frames = json.loads(file.read_text())
    PICTURE.write_text(svg(typed_s, frames))
    seconds = frames[-1][0] - typed_s
    click.echo(f"{PICTURE}: {len(frames)} screens, the demo took {seconds:.0f} s")


if __name__ == "__main__":
    main()
