"""`report`: the page of `watch --web` with its data, as one file, and the picture alone.

The page's code is inlined and named by its hash in a Content-Security-Policy, so nothing else may
run or be loaded. The data is in blocks of JSON, which no browser runs.
"""

import base64
import dataclasses
import hashlib
from pathlib import Path

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.views import plot
from autoresearch_jax.views.entries import NOTHING_YET
from autoresearch_jax.views.rows import as_csv
from autoresearch_jax.views.watch import page_data
from autoresearch_jax.views.watch.live_model import LiveModel, Reader
from autoresearch_jax.views.watch.web import PAGE, SCRIPTS, STYLE, page


def write(reader: Reader, folder: Path, *, png: bool = False, prompts: bool = False) -> list[Path]:
    """Write the files of a report into `folder`, and return their paths.

    `prompts`: include the prompts of agents. Raises UserError if nothing is recorded yet, or if
    the folder cannot be written.
    """
    model = dataclasses.replace(reader.read(), running=(), state="idle", tags=())
    if model.problem or not model.entries:
        raise UserError(model.problem or NOTHING_YET)
    paths = [folder / "report.html", folder / "progress.svg"]
    paths += [folder / "progress.png"] if png else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(html(reader, model, prompts=prompts), encoding="utf-8")
        for path in paths[1:]:
            plot.progress(model.entries, model.summary, path, model.title)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. Name another folder with -o DIR."
        ) from None
    return paths


def html(reader: Reader, model: LiveModel, *, prompts: bool = False) -> str:
    """Return the page with its style, its code and its data."""
    style, *code = ((PAGE / name).read_text(encoding="utf-8") for name in (STYLE, *SCRIPTS))
    blocks = [("model", page_data.of_model(model))]
    if (found := page_data.of_insights(reader)) is not None:
        blocks.append(("insights-data", found))
    for n, found in page_data.of_experiments(reader):
        if not prompts:
            found.pop("prompt", None)
        blocks.append((f"experiment-{n}", found))
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, code))}; "
        f"style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    scripts = dict(zip(SCRIPTS, code, strict=True))
    table = base64.b64encode(as_csv(model.entries).encode()).decode()
    csv = f"data:text/csv;base64,{table}"
    return page(style=style, scripts=scripts, blocks=blocks, policy=policy, csv=csv)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
