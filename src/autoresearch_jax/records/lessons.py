"""lessons.md of a tag: what agents wrote down, with what was then measured, and what a person adds.

The person owns the file: lines that they change or remove stay so. The loop adds the lessons of the
journal that the file does not have yet, above a comment that counts them. As the count is in the
file itself, saving an older copy of it loses nothing: what it lacks is added again.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from autoresearch_jax.common import files
from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import LESSON_LIMIT, Lesson

NAME = "lessons.md"
MOST_BYTES = 1 << 20  # of the file; a longer one is the person's, and is left alone

_HEADING = """\
# Lessons of autoresearch/{tag}

Agents write these lines, and read them before each proposal, yours first. Edit them as you like.

"""
_COUNT = "<!-- {} lessons of {} were added so far. The next ones are added above this line. -->"
_COUNTED = r"^<!-- (\d{{1,9}}) lessons of {} were added so far\..*-->\r?$"
_COMMENT = re.compile(r"^[ \t]*<!--.*?-->", re.DOTALL | re.MULTILINE)
_MEASURED = re.compile(
    r"\((?:experiment \d+, (keep|discard|crash)(?:, ([+-]\d+\.\d+))?|not measured)\)$"
)


def path_of(state_dir: Path) -> Path:
    """Return the path of the file in a tag's folder."""
    return state_dir / NAME


def read(state_dir: Path) -> str:
    """Return the text of the file, "" if there is none."""
    return _bytes(state_dir).decode(errors="replace")


def _bytes(state_dir: Path) -> bytes:
    with contextlib.suppress(OSError, RuntimeError):  # a link that leads to itself
        # The person may keep it elsewhere, and leave a link here.
        return files.read_part(path_of(state_dir).resolve(), MOST_BYTES)
    return b""


def create(state_dir: Path, tag: str) -> Path:
    """Return the path of the file, which is there then. Raises OSError."""
    path = path_of(state_dir)
    with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
        file.write(f"{_HEADING.format(tag=tag)}{_COUNT.format(0, tag)}\n")
    return path


def update(state_dir: Path, tag: str, known: Sequence[Lesson]) -> None:
    """Add the lessons of the journal that the file does not have yet.

    Only one thread of the process that holds the tag may call it. Raises OSError.
    """
    path = path_of(state_dir)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MOST_BYTES:
            return
    # In whatever encoding the person writes, their bytes stay.
    before = _bytes(state_dir).decode(errors="surrogateescape")
    after = extended(before, tag, known)
    if after != before:
        files.write_bytes(path, after.encode(errors="surrogateescape"))


def extended(text: str, tag: str, known: Sequence[Lesson]) -> str:
    """Return the text of the file with all lessons of the journal that it did not have."""
    counted = re.search(_COUNTED.format(re.escape(tag)), text, re.MULTILINE)
    done = int(counted[1]) if counted else 0  # the person may have removed the comment
    if done >= len(known):
        return text
    there = {*text.splitlines()}
    lines = dict.fromkeys(line for line in map(line_of, known[done:]) if line not in there)
    added = "".join(f"{line}\n" for line in lines)
    if counted:
        count = _COUNT.format(len(known), tag)
        return f"{text[: counted.start()]}{added}{count}{text[counted.end() :]}"
    text = text or _HEADING.format(tag=tag)
    text += "" if text.endswith("\n") else "\n"
    return f"{text}{added}{_COUNT.format(len(known), tag)}\n"


def line_of(one: Lesson) -> str:
    """Return a lesson as a line of the file."""
    words = "not measured" if one.n is None else f"experiment {one.n}, {one.status}"
    words += "" if one.change is None else f", {one.change:+.6f}"
    text = clean(one.text, LESSON_LIMIT).replace("<!--", "<-").replace("-->", "->")
    return f"- {text} ({words})"


def ranked(text: str) -> list[str]:
    """Return the lines of a file, without headings and comments, the most useful first.

    A person's come first, then what agents learned with a gain, the largest first, then the rest,
    the newest first. A text that several lines have counts once.
    """
    own, gains, others = list[str](), list[tuple[float, str]](), list[str]()
    for line in reversed([*_lines(text)]):
        measured = _MEASURED.search(line)
        if measured is None:
            own.append(line)
        elif measured[1] == Status.KEEP and measured[2] is not None:
            gains.append((float(measured[2]), line))
        else:
            others.append(line)
    largest_first = sorted(gains, key=lambda gain: gain[0])
    found: dict[str, str] = {}
    for line in (*reversed(own), *(line for _, line in largest_first), *others):
        found.setdefault(_MEASURED.sub("", line).strip().casefold(), line)
    return list(found.values())


def _lines(text: str) -> Iterator[str]:
    """Yield the lessons of a file, each on one line."""
    heading = {*_HEADING.splitlines()}
    for line in _COMMENT.sub("", text).splitlines():
        words = line.strip().removeprefix("- ").strip()
        if words and not line.startswith("#") and line not in heading:
            yield words
