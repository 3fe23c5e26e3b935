"""A story as Markdown, for a pull request, an e-mail or a chat."""

from collections.abc import Iterable, Iterator

from autoresearch_jax.views.story_parts import WHOLE, Line, Piece, Story, Table

PICTURE = "progress.svg"


def render(story: Story, end: str) -> str:
    """Return a story as Markdown; `end` is its last line.

    What others wrote is in code spans, in which no Markdown, HTML, link or mention has a meaning.
    After each line its records follow in brackets, unless it names them itself.
    """
    return "\n".join([*_lines(story), end, ""])


def _lines(story: Story) -> Iterator[str]:
    yield f"# {_span(story.title)}"
    yield from ("", f"**{_words(story.headline)}**{_records(story.headline)}", "")
    yield f"![Scores of the experiments]({PICTURE})"
    for section in story.sections:
        yield from ("", f"## {section.title}", "")
        if section.table is not None:
            yield from _table(section.table)
            yield ""
        yield from (f"- {_words(line)}{_records(line)}" for line in section.lines)
    others = "Others are of the experiment that their line names, or of all experiments together."
    yield from ("", f"In brackets are the records of numbers. {others}", "")


def _table(table: Table) -> Iterator[str]:
    records = ["; ".join(_named_records(piece for cell in row for piece in cell))
               for row in table.rows]  # fmt: skip
    more = ["records"] * any(records)
    yield _row((*table.columns, *more))
    yield "|" + " --- |" * (len(table.columns) + len(more))
    for row, found in zip(table.rows, records, strict=True):
        yield _row((*map(_words, row), *([found] if more else [])))


def _row(cells: Iterable[str]) -> str:
    # A bar would end the cell, also in a code span.
    return "| " + " | ".join(cell.replace("|", "\N{BROKEN BAR}") for cell in cells) + " |"


def _words(line: Line) -> str:
    return "".join(map(_piece, line))


def _piece(piece: Piece) -> str:
    return _span(piece.text) if piece.kind in ("quote", "command") else piece.text


def _span(text: str) -> str:
    text = " ".join(text.split()).replace("`", "'")
    return f"`{text}`" if text else ""


def _records(line: Line) -> str:
    found = "; ".join(_named_records(line))
    return f" [{found}]" if found else ""


def _named_records(line: Iterable[Piece]) -> list[str]:
    """Return the records of a line's facts, each once, without those that the line names."""
    facts = [one for one in line if one.kind == "fact"]
    named = {WHOLE, *(one.record for one in facts if one.record == f"experiment {one.text}")}
    return [name for name in dict.fromkeys(one.record.partition(":")[0] for one in facts)
            if name not in named]  # fmt: skip
