"""lessons.md of a tag: what agents wrote down, with what was then measured, and what a person adds.

The person owns the file: lines that they change or remove stay so. The loop adds the lessons of the
journal that the file does not have yet, above a comment that counts them. As the count is in the
file itself, saving an older copy of it loses nothing: what it lacks is added again.

Lines of another tag, which a loop may begin with, name it: `(learned from TAG: experiment 4, ...)`.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_LEARNED = re.compile(r"\(learned from [\w.-]+(?:: ([^()]*))?\)$")  # and what was measured there


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
    _rewrite(state_dir, lambda text: extended(text, tag, known))


def add(state_dir: Path, tag: str, lines: Sequence[str]) -> None:
    """Add lines that the file does not have, as `update` does. Raises OSError."""
    _rewrite(state_dir, lambda text: _with(text, tag, lines, _count(text, tag)))


def _rewrite(state_dir: Path, change: Callable[[str], str]) -> None:
    path = path_of(state_dir)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MOST_BYTES:
            return
    # In whatever encoding the person writes, their bytes stay.
    before = _bytes(state_dir).decode(errors="surrogateescape")
    after = change(before)
    if after != before:
        files.write_bytes(path, after.encode(errors="surrogateescape"))


def extended(text: str, tag: str, known: Sequence[Lesson]) -> str:
    """Return the text of the file with all lessons of the journal that it did not have."""
    done = _count(text, tag)
    if done >= len(known):
        return text
    return _with(text, tag, map(line_of, known[done:]), len(known))


def _counted(text: str, tag: str) -> re.Match[str] | None:
    return re.search(_COUNTED.format(re.escape(tag)), text, re.MULTILINE)


def _count(text: str, tag: str) -> int:
    """Return how many lessons of the tag were added; 0 if the person has removed the comment."""
    counted = _counted(text, tag)
    return int(counted[1]) if counted else 0


def _with(text: str, tag: str, lines: Iterable[str], count: int) -> str:
    """Return the text with new lines above the comment, and with that count in it."""
    there, counted = {*text.splitlines()}, _counted(text, tag)
    added = "".join(f"{line}\n" for line in dict.fromkeys(lines) if line not in there)
    comment = _COUNT.format(count, tag)
    if counted:
        return f"{text[: counted.start()]}{added}{comment}{text[counted.end() :]}"
    text = text or _HEADING.format(tag=tag)
    text += "" if text.endswith("\n") else "\n"
    return f"{text}{added}{comment}\n"


def line_of(one: Lesson) -> str:
    """Return a lesson as a line of the file."""
    words = "not measured" if one.n is None else f"experiment {one.n}, {one.status}"
    words += "" if one.change is None else f", {one.change:+.6f}"
    return _line(one.text, words)


def learned(one: Lesson, tag: str) -> str:
    """Return a lesson of another tag as a line of the file."""
    return of_another(line_of(one), tag)[0]


def _line(text: str, measured: str) -> str:
    text = clean(text, LESSON_LIMIT).replace("<!--", "<-").replace("-->", "->")
    return f"- {text} ({measured})"


def ranked(text: str) -> list[str]:
    """Return the lines of a file, without headings and comments, the most useful first.

    A person's come first, then what agents learned with a gain, the largest first, then the same of
    another tag, then the rest, the newest first. A text that several lines have counts once.
    """
    placed = []
    for at, line in enumerate(_lines(text)):
        words, measured, is_learned = _parts(line)
        found = _MEASURED.search(measured)
        gain = found[2] if found and found[1] == Status.KEEP else None
        kind = 4 if measured and gain is None else 1 if gain else 0  # 0: a person's
        place = (kind + 2 * is_learned, float(gain or 0), -at if measured else at)
        placed.append((place, words.casefold(), line))
    lines: dict[str, str] = {}
    for _, words, line in sorted(placed):
        lines.setdefault(words, line)
    return list(lines.values())


def _parts(line: str) -> tuple[str, str, bool]:
    """Return the text of a lesson, what was measured, and whether another tag did that."""
    learned = _LEARNED.search(line)
    if learned is not None:
        return line[: learned.start()].strip(), f"({learned[1]})" if learned[1] else "", True
    measured = _MEASURED.search(line)
    if measured is not None:
        return line[: measured.start()].strip(), measured[0], False
    return line, "", False


def of_another(text: str, tag: str) -> list[str]:
    """Return the lines of another tag's file, each with the tag that wrote it, as `ranked`."""
    lines = []
    for line in ranked(text):
        words, measured, is_learned = _parts(line)
        where = f"learned from {tag}{': ' if measured else ''}{measured[1:-1]}"
        lines.append(_line(words, line[len(words) :].strip()[1:-1] if is_learned else where))
    return lines


def _lines(text: str) -> Iterator[str]:
    """Yield the lessons of a file, each on one line."""
    heading = {*_HEADING.splitlines()}
    for line in _COMMENT.sub("", text).splitlines():
        words = line.strip().removeprefix("- ").strip()
        if words and not line.startswith("#") and line not in heading:
            yield words
