"""Reading documents from files: parquet, JSON lines and plain text, the last two also compressed.

All errors about the content of a file are UserErrors that name the file and the place in it.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from autoresearch_jax.common.errors import UserError

# Of a folder with several kinds only the first one is read: README.txt beside parquet files.
KINDS = {"parquet": (".parquet",), "jsonl": (".jsonl", ".ndjson"), "txt": (".txt",)}
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # suffix -> pyarrow's name
READ_ROWS = 1024  # documents of a parquet file in memory at a time
TEXT_CHARS = 4000  # plain text is divided at the first line end after so many

_lines = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str | None)


def kind_of(name: str) -> str:
    """Return of which of KINDS a file is, by its name; "" of none."""
    name = name.lower()
    for suffix in COMPRESSED:
        if name.endswith(suffix) and not name.endswith(f".parquet{suffix}"):
            name = name.removesuffix(suffix)
    return next((kind for kind, suffixes in KINDS.items() if name.endswith(suffixes)), "")


def of_one_kind(names: list[str]) -> list[str]:
    """Return the names of the first of KINDS that is there, sorted."""
    kinds = {name: kind_of(name) for name in names}
    first = next((kind for kind in KINDS if kind in kinds.values()), None)
    return sorted(name for name, kind in kinds.items() if kind == first)


def identity(path: str, sha256: str, column: str) -> str:
    """Return a text that is equal for files with the same documents."""
    kind = kind_of(path)
    return sha256 if (kind, column) == ("parquet", "text") else f"{sha256} {kind} {column}"


def check(path: Path, column: str) -> None:
    """Raise UserError unless `path` is a whole file with a column of text."""
    if kind_of(path.name) == "parquet":
        with _reading(path), pq.ParquetFile(path) as file:
            _check_schema(path, file.schema_arrow, column)
    else:  # a text may be empty; its later lines are checked when they are read
        next(read([path], column), None)


def read(paths: Iterable[Path], column: str = "text") -> Iterator[str]:
    """Yield the documents of files in order, without empty ones and nulls. Raises UserError."""
    for path in paths:
        yield from filter(None, _read(path, column))


def count(paths: Iterable[Path]) -> int | None:
    """Return how many documents files contain, empty ones included. Raises UserError.

    None: that is not known before they are read.
    """
    total = 0
    for path in paths:
        if kind_of(path.name) != "parquet":
            return None
        with _reading(path), pq.ParquetFile(path) as file:
            total += file.metadata.num_rows
    return total


def _read(path: Path, column: str) -> Iterator[str | None]:
    readers = {"parquet": _parquet, "jsonl": _json_lines, "txt": _text}
    return readers[kind_of(path.name)](path, column)


# --- Parquet ------------------------------------------------------------------------------------


def _check_schema(path: Path, schema: Any, column: str) -> None:
    if (times := schema.names.count(column)) != 1:
        why = f"has no column `{column}`, only {', '.join(schema.names)}"
        if times:
            why = f"has {times} columns named `{column}`"
        elif not schema.names:
            why = "has no columns"
        raise UserError(f"{path} {why}: name another with --column, or choose another --source")
    kind = given = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in (pa.string(), pa.large_string(), pa.string_view()):
        raise UserError(
            f"the column `{column}` of {path} has the type {given} instead of string: name another "
            "with --column"
        )


def _parquet(path: Path, column: str) -> Iterator[str | None]:
    row = 0
    with _reading(path), pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):  # for all at once it loads the whole file
            for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=[column]):
                try:
                    yield from batch.column(0).to_pylist()
                except UnicodeDecodeError as error:
                    where = f"between rows {row} and {row + len(batch)}"
                    raise _not_utf8(path, where, error) from error
                row += len(batch)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into a UserError."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        torn = type(error) is OSError and error.errno is None  # how a damaged page is reported
        if not (torn or isinstance(error, pa.ArrowInvalid)):
            raise
        if "Invalid UTF8" in str(error):
            raise _not_utf8(path, "in a dictionary-encoded column", error) from error
        from huggingface_hub import constants

        remedy = "replace it, or delete it, and run the same command again"
        if path.is_relative_to(constants.HF_HUB_CACHE):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            remedy = "the damaged copy is removed, and the same command fetches it again"
        what = kind_of(path.name)
        raise UserError(f"{path} is truncated or not {what} ({error}): {remedy}") from error


# --- JSON lines and plain text ------------------------------------------------------------------


def _json_lines(path: Path, column: str) -> Iterator[str | None]:
    known: set[str] = set()
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                fields = _lines.decode(line.decode("utf-8-sig"))
                known |= fields.keys() if number <= READ_ROWS else set()
                text = _string.decode(fields[column]) if column in fields else None
                (text or "").encode()
            except UnicodeError as error:
                raise _not_utf8(path, f"in line {number}", error) from error
            except (msgspec.DecodeError, RecursionError) as error:
                raise UserError(
                    f'line {number} of {path} is not {{"{column}": "..."}} ({error}): correct it, '
                    "or name another field with --column"
                ) from error
            if number >= READ_ROWS and known and column not in known:
                break
            yield text
    if known and column not in known:
        raise UserError(
            f"{path} has no field `{column}`, only {', '.join(sorted(known))}: name another with "
            "--column, or choose another --source"
        )


def _text(path: Path, _: str) -> Iterator[str]:
    """Yield pieces that end with a line: a document of the length of a book would be cropped."""
    pieces = 0
    with _opened(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as file:
        try:
            while piece := file.read(TEXT_CHARS):
                yield piece + file.readline(TEXT_CHARS)
                pieces += 1
        except UnicodeError as error:
            raise _not_utf8(path, f"after {pieces * TEXT_CHARS:,} characters", error) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    compression = COMPRESSED.get(path.suffix.lower())
    with _reading(path), pa.input_stream(str(path), compression=compression) as stream:
        yield io.BufferedReader(stream)


def _not_utf8(path: Path, where: str, error: Exception) -> UserError:
    reason = getattr(error, "reason", error)
    return UserError(
        f"{path} has text {where} that is not UTF-8 ({reason}): convert it, for example with "
        "`iconv -f latin1 -t utf-8`, or leave the file out"
    )
