"""`report`: the story of a tag and the page of `watch --web` with its data, as one file.

Beside it are the story as Markdown and the picture alone. The page's code is inlined and named by
its hash in a Content-Security-Policy, so nothing else may run or be loaded. The data is in blocks
of JSON, which no browser runs.

A report holds from which part of the journal it was made, and all of it follows from the records
(report_check.py).
"""

import base64
import dataclasses
import hashlib
import importlib.metadata
import time
from pathlib import Path

import msgspec

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.views import plot, story, story_data, story_markdown
from autoresearch_jax.views.entries import NOTHING_YET
from autoresearch_jax.views.rows import as_csv
from autoresearch_jax.views.story_parts import Story, StoryData
from autoresearch_jax.views.watch import page_data
from autoresearch_jax.views.watch.live_model import JournalReader, LiveModel, Reader
from autoresearch_jax.views.watch.web import PAGE, SCRIPTS, STYLE, page

HTML, MARKDOWN, SVG, PNG = "report.html", "report.md", "progress.svg", "progress.png"
VERSION = importlib.metadata.version("autoresearch-jax")
MADE_FROM = "made-from"  # the block with a `MadeFrom`
OF_THE_MOMENT = ("lessons", "more_lessons")  # which a person may edit


class MadeFrom(msgspec.Struct, frozen=True):
    """The part of the records that a report was made from."""

    tag: str | None  # None: a results.tsv
    bytes: int  # of the journal or the table, from its start
    sha256: str  # of those
    time: float  # Unix time
    prompts: bool
    version: str  # of this program


def write(reader: Reader, folder: Path, *, png: bool = False, prompts: bool = False) -> list[Path]:
    """Write the files of a report into `folder`, and return their paths.

    `prompts`: include the prompts of agents. Raises UserError if nothing is recorded yet, or if
    the folder cannot be written.
    """
    model = reader.read()
    if model.problem or not model.entries:
        raise UserError(model.problem or NOTHING_YET)
    source, until = source_file(reader)
    made_from = MadeFrom(
        tag=reader.tag if isinstance(reader, JournalReader) else None,
        bytes=until,
        sha256=digest(source, until),
        time=time.time(),
        prompts=prompts,
        version=VERSION,
    )
    return write_again(reader, folder, made_from, png=png)


def source_file(reader: Reader) -> tuple[Path, int]:
    """Return the file that a reader has read, and how many of its bytes."""
    if isinstance(reader, JournalReader) and reader.tag is not None:
        return journal.path_of(reader.workspace.state_dir(reader.tag)), reader.bytes_read
    path = (reader.table if isinstance(reader, JournalReader) else reader).path
    return path, path.stat().st_size


def digest(path: Path, count: int) -> str:
    """Return the SHA-256 of the first bytes of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(count)).hexdigest()


def write_again(reader: Reader, folder: Path, made_from: MadeFrom, *, png: bool) -> list[Path]:
    """Write the files of a report that is made from a part of the records."""
    if isinstance(reader, JournalReader) and reader.tag is not None:
        # A loop may add to the journal meanwhile.
        reader = JournalReader(reader.workspace, reader.tag, follow=False, until=made_from.bytes)
    # A report is shared, and what is of the moment follows from no record.
    model = dataclasses.replace(
        reader.read(), running=(), state="idle", tags=(), ending="", failed=False, thinking=(),
        paused="", waiting=(), hints=(),
    )  # fmt: skip
    told = story.tell(model.title, model.entries, model.summary, _data(reader))
    paths = [folder / name for name in (HTML, MARKDOWN, SVG, PNG)[: 4 if png else 3]]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths[2:]:
            plot.progress(model.entries, model.summary, path, model.title)
        picture = base64.b64encode((folder / SVG).read_bytes()).decode()
        text = html(reader, model, made_from, told, f"data:image/svg+xml;base64,{picture}")
        paths[0].write_text(text, encoding="utf-8")
        comment = f"<!-- {MADE_FROM}: {page_data.encode(made_from)} -->"
        paths[1].write_text(story_markdown.render(told, comment), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. Name another folder with -o DIR."
        ) from None
    return paths


def _data(reader: Reader) -> StoryData:
    if not isinstance(reader, JournalReader) or reader.tag is None:
        return StoryData()
    return story_data.story_data(reader.experiments, Candidates(reader.workspace, reader.tag))


def html(reader: Reader, model: LiveModel, made_from: MadeFrom, told: Story, picture: str) -> str:
    """Return the page with its style, its code and its data, below the story."""
    names = (STYLE, "story.css", *SCRIPTS)
    style, story_style, *code = ((PAGE / name).read_text(encoding="utf-8") for name in names)
    style += story_style
    moment = {"now": made_from.time}
    blocks = [(MADE_FROM, made_from), ("model", page_data.of_model(model) | moment)]
    if (found := page_data.of_insights(reader)) is not None:
        blocks.append(("insights-data", found))
    for n, found in page_data.of_experiments(reader):
        if not made_from.prompts:
            found.pop("prompt", None)
        blocks.append((f"experiment-{n}", found))
    policy = (
        f"default-src 'none'; script-src {' '.join(map(content_hash, code))}; "
        f"style-src {content_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    scripts = dict(zip(SCRIPTS, code, strict=True))
    table = base64.b64encode(as_csv(model.entries).encode()).decode()
    return page(
        style=style,
        scripts=scripts,
        blocks=blocks,
        policy=policy,
        story=told,
        picture=picture,
        csv=f"data:text/csv;base64,{table}",
    )


def content_hash(text: str) -> str:
    """Return a text's hash as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
