"""`report`: the page of `watch --web` with its data in it, as one file, and the picture alone.

The page's own code is inlined and named by its hash in a Content-Security-Policy, and nothing else
may run or be loaded. The data is in blocks of JSON, which no browser runs.
"""

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.views import plot
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.watch import detail, plain
from autoresearch_jax.views.watch.live_model import LiveModel, Reader
from autoresearch_jax.views.watch.web import FILES, PAGE, page

NAME = "report.html"


def write(reader: Reader, folder: Path, *, png: bool = False, prompts: bool = False) -> list[Path]:
    """Writes the files of a report into `folder`, and returns their paths.

    `prompts`: with the prompts of agents. Raises UserError where there is nothing to tell yet, or
    the folder cannot be written.
    """
    model = dataclasses.replace(reader.read(), running=(), state="idle")
    if model.problem:
        raise UserError(model.problem)
    if not model.entries:
        raise UserError("no experiment is recorded here yet: `autoresearch-jax loop` starts.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        path.write_text(html(reader, model, prompts=prompts), encoding="utf-8")
        return [path, *_pictures(model.entries, folder, model.title, png)]
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): -o names another."
        ) from None


def _pictures(entries: Sequence[Entry], folder: Path, title: str, png: bool) -> list[Path]:
    paths = [folder / "progress.svg", *([folder / "progress.png"] if png else [])]
    for path in paths:
        plot.progress(entries, path, title=title)
    return paths


def html(reader: Reader, model: LiveModel, *, prompts: bool = False) -> str:
    """The page with its style, its code and its data in it."""
    scripts = {name: (PAGE / name).read_text(encoding="utf-8") for name in FILES}
    style = scripts.pop("page.css")
    blocks = [("model", plain.of(model))]
    for entry in model.entries:
        found = detail.of_experiment(reader, entry.n) or {}
        if not prompts:
            found.pop("prompt", None)
        blocks.append((f"experiment-{entry.n}", found))
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts.values()))}; "
        f"style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return page(style=style, scripts=scripts, blocks=blocks, policy=policy)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
