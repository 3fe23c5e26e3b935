"""Whether a report says what the records say: it is made again from them, and compared."""

import difflib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.views.watch import live_model, report_file
from autoresearch_jax.views.watch.report_file import (
    HTML,
    MADE_FROM,
    MARKDOWN,
    OF_THE_MOMENT,
    PNG,
    SVG,
    MadeFrom,
)

AROUND, SHOWN = 70, 8  # characters around a difference, and differences in a message
LINES = 2_000  # beyond which lines are compared by their places alone
ANOTHER = "it is another picture than the records give with this version of matplotlib"
WRITE_AGAIN = "Write it again: autoresearch-jax report"
_BLOCK = re.compile(r'(<script type="application/json" id="([^"]+)">)([^<]*)(?=</script>)')
_RECORD = re.compile(r'data-record="([^"]*)"')
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def check(root: Path, folder: Path) -> list[str]:
    """Return where the report in `folder` differs from the records of a workspace, [] if nowhere.

    Raises UserError if that cannot be found out.
    """
    texts = {name: _text(folder / name) for name in (HTML, MARKDOWN, SVG)}
    made_from = _made_from(folder / HTML, texts[HTML])
    reader = _reader(root, folder, made_from)
    png = (folder / PNG).exists()
    with tempfile.TemporaryDirectory() as other:
        report_file.write_again(reader, Path(other), made_from, png=png)
        right = {name: _text(Path(other, name)) for name in texts}
        same_png = not png or (folder / PNG).read_bytes() == Path(other, PNG).read_bytes()
    found = differences(texts, right) + ([] if same_png else [f"{PNG}: {ANOTHER}"])
    if found and made_from.version != report_file.VERSION:
        found.insert(0, f"version {made_from.version} wrote it, and this is {report_file.VERSION}")
    return found


def differences(texts: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    """Return where files, by name, differ from the right ones."""
    found = [*_of_page(texts[HTML], right[HTML])]
    found += _of_lines(MARKDOWN, texts[MARKDOWN], right[MARKDOWN])
    return found + ([] if texts[SVG] == right[SVG] else [f"{SVG}: {ANOTHER}"])


def message(folder: Path, found: list[str]) -> str:
    """Return where a report differs, in words."""
    lines = [f"  {one}" for one in found[:SHOWN]]
    lines += [f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    png = " --png" if (folder / PNG).exists() else ""
    return "\n".join(
        [f"{folder} is not what the records say:", *lines, f"{WRITE_AGAIN} -o {folder}{png}"]
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. A report is a folder with {HTML}, "
            f"{MARKDOWN} and {SVG}. {WRITE_AGAIN} -o {path.parent}"
        ) from None


def _made_from(path: Path, text: str) -> MadeFrom:
    blocks = {name: data for _, name, data in _BLOCK.findall(text)}
    try:
        return msgspec.json.decode(blocks.get(MADE_FROM, ""), type=MadeFrom)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UserError(
            f"{path} does not say which records it was made from ({clean(str(error))}): it is of "
            f"an earlier version, or was altered. {WRITE_AGAIN} -o {path.parent}"
        ) from None


def _reader(root: Path, folder: Path, made_from: MadeFrom) -> live_model.Reader:
    """Return a reader of what a report was made from. Raises UserError if that is gone."""
    reader = live_model.open_reader(root, made_from.tag)
    model = reader.read()
    if model.problem:
        raise UserError(model.problem)
    path, count = report_file.source_file(reader)
    table = made_from.tag is None
    whole = count == made_from.bytes if table else 0 < made_from.bytes <= count
    if not whole or report_file.digest(path, made_from.bytes) != made_from.sha256:
        what = "grew or was altered" if table else "was altered"
        raise UserError(
            f"{path} {what} since {folder} was written, or the report was altered: it was made "
            f"from {made_from.bytes:,} bytes that are not there any more. {WRITE_AGAIN} -o {folder}"
        )
    return reader


# ------------------------------------------------------------------------------- differences


def _of_page(text: str, right: str) -> Iterator[str]:
    """Yield where a page differs: in its lines, and in its blocks of data."""
    pages = [_BLOCK.sub(r"\1", one) for one in (text, right)]
    yield from _of_lines(HTML, *pages)
    found, wanted = ({name: data for _, name, data in _BLOCK.findall(one)} for one in (text, right))
    for name, data in wanted.items():
        try:
            said = json.loads(found.get(name, ""))
        except (ValueError, RecursionError):
            yield f"{HTML}, data of {name}: it is missing or no JSON"
            continue
        known = json.loads(data)
        if name == "model" and isinstance(said, dict):
            said |= {key: known[key] for key in OF_THE_MOMENT}
        yield from _of_data(f"{HTML}, data of {name}", said, known)


def _of_data(where: str, said: Any, right: Any) -> Iterator[str]:
    if isinstance(said, dict) and isinstance(right, dict):
        for key in {**right, **said}:
            yield from _of_data(f"{where}, {key}", said.get(key), right.get(key))
    elif isinstance(said, list) and isinstance(right, list) and len(said) == len(right):
        for at, (one, other) in enumerate(zip(said, right, strict=True)):
            yield from _of_data(f"{where}[{at}]", one, other)
    elif said != right or isinstance(said, bool) != isinstance(right, bool):
        shown = [clean(json.dumps(one), AROUND) for one in (said, right)]
        yield f"{where}: it says {shown[0]}, and the records say {shown[1]}"


def _of_lines(name: str, text: str, right: str) -> Iterator[str]:
    """Yield each line that differs, is missing or was added."""
    said, wanted = text.split("\n"), right.split("\n")
    if len(said) == len(wanted) or max(len(said), len(wanted)) > LINES:
        for at in range(max(len(said), len(wanted))):
            one, other = (lines[at] if at < len(lines) else "" for lines in (said, wanted))
            if one != other:
                yield f"{name}, line {at + 1}: {_difference(one, other)}"
        return
    steps = difflib.SequenceMatcher(None, said, wanted, autojunk=False).get_opcodes()
    for kind, at, until, start, end in steps:
        if kind != "equal":
            one, other = "\n".join(said[at:until]), "\n".join(wanted[start:end])
            yield f"{name}, line {at + 1}: {_difference(one, other)}"


def _difference(said: str, right: str) -> str:
    """Return what a text says instead of the right one, with the record of a number."""
    start = next(
        (at for at, (a, b) in enumerate(zip(said, right, strict=False)) if a != b),
        min(len(said), len(right)),
    )
    records = _RECORD.findall(right[: right.find(">", start) + 1 or None])
    found = [_around(one, start) for one in (said, right)]
    of = f" ({records[-1]})" if records and _NUMBER.fullmatch(found[1]) else ""
    return (
        f"it says {clean(found[0], AROUND)!r}, and the records say {clean(found[1], AROUND)!r}{of}"
    )


def _around(text: str, at: int) -> str:
    """Return the number at a place of a text; without one, the text from there on."""
    for match in _NUMBER.finditer(text):
        if match.start() <= at <= match.end():
            return match[0]
    return text[max(0, at - 20) : at + AROUND]
