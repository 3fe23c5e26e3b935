"""`report`: the page of `watch --web` with its data in it, as one file, and the picture alone.

The page's own code is inlined and named by its hash in a Content-Security-Policy, and nothing else
may run or be loaded. The data is in blocks of JSON, which no browser runs.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.views import plot
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.watch import detail, plain
from autoresearch_jax.views.watch.live_model import LiveModel, Reader
from autoresearch_jax.views.watch.web import FILES, PAGE

NAME = "report.html"


def write(reader: Reader, folder: Path, *, png: bool = False, prompts: bool = False) -> list[Path]:
    """Writes the files of a report into `folder`, and returns their paths.

    `prompts`: with what agents were told. Raises UserError where there is nothing to tell yet, or
    the folder cannot be written.
    """
    told = dataclasses.replace(reader.read(), running=(), state="idle")
    if told.problem:
        raise UserError(told.problem)
    if not told.entries:
        raise UserError("no experiment is recorded here yet: `autoresearch-jax loop` starts.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / NAME
        page.write_text(html(reader, told, prompts=prompts), encoding="utf-8")
        return [page, *_pictures(told.entries, folder, told.title, png)]
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): -o names another."
        ) from None


def _pictures(entries: Sequence[Entry], folder: Path, title: str, png: bool) -> list[Path]:
    paths = [folder / "progress.svg", *([folder / "progress.png"] if png else [])]
    for path in paths:
        plot.progress(entries, path, title=title)
    return paths


def html(reader: Reader, told: LiveModel, *, prompts: bool = False) -> str:
    """The page with its style, its code and its data in it."""
    files = {name: (PAGE / name).read_text(encoding="utf-8") for name in FILES}
    style = files.pop("page.css")
    blocks = [_block("model", plain.of(told))]
    for entry in told.entries:
        found = detail.of_experiment(reader, entry.n) or {}
        blocks.append(_block(f"experiment-{entry.n}", found if prompts else _unprompted(found)))
    policy = _policy(style, list(files.values()))
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    page = _put(page, '<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}')
    page = _put(page, '<link rel="stylesheet" href="page.css">', f"<style>{style}</style>")
    # From the last one on: data is never searched for a place to put something.
    for name, code in reversed(files.items()):
        page = _put(page, f'<script src="{name}"></script>', _script(code))
    return _put(page, '<p id="said"', "\n".join([*blocks, '<p id="said"']))


def _put(page: str, old: str, new: str) -> str:
    """The page with one part replaced by another."""
    before, found, after = page.partition(old)
    assert found, old
    return before + new + after


def _unprompted(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "prompt"}


def _script(code: str) -> str:
    assert "</script" not in code
    return f"<script>{code}</script>"


def _policy(style: str, scripts: Sequence[str]) -> str:
    """Lets the page's own code and style through, and nothing else at all."""
    code = " ".join(_hash(script) for script in scripts)
    policy = (
        f"default-src 'none'; script-src {code}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{policy}">'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _block(name: str, value: Any) -> str:
    """Data in the page. No text in it can end the block: it has no `<`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
