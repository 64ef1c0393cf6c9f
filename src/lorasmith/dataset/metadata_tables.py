"""Read metadata.csv and metadata.parquet as records, one row at a time; one bad row costs only itself."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
TWICE = "\0twice"  # the key under which a record keeps the name of a key that it was given twice
_LINES_IN_A_ROW = 20  # of a cell in quotes; a quote that is never closed must not swallow the file
_DELIMITERS = ",;\t"


class UnreadableTableError(Exception):
    """The whole table cannot be read."""


@dataclass(frozen=True)
class Fault:
    """Why a line is no record: the code of a kind of finding, and words that follow "Line 3 of metadata.csv"."""

    code: str
    what: str


def record_of(pairs: Iterable[tuple[str, Any]]) -> Record:
    """Return a record; of a key that comes twice the last value counts, and ``TWICE`` names the key."""
    record: Record = {}
    for key, value in pairs:
        if key in record:
            record[TWICE] = key
        record[key] = value
    return record


def csv_records(lines: Iterator[tuple[int, bytes | None]]) -> Iterator[tuple[int, Record | Fault]]:
    """Yield the rows of a CSV file under the names in its first line, each with the number of the line it starts on.

    Args:
        lines: numbers and bytes, None for a line that is too long. Commas, or semicolons or tabs if the first line
            has more of those, part the cells (RFC 4180).
    """
    waiting: deque[tuple[int, bytes | None]] = deque()
    names: list[str] | None = None
    delimiter = ","
    while True:
        item = waiting.popleft() if waiting else next(lines, None)
        if item is None:
            return
        number, raw = item
        text = _text(raw)
        if isinstance(text, Fault):
            yield number, text
            continue
        if not text.strip():
            continue
        if names is None:
            delimiter = max(_DELIMITERS, key=text.count)
        row = _row(text, delimiter, waiting, lines)
        if names is None:
            names = [cell.strip() for cell in row] if isinstance(row, list) else []
        elif isinstance(row, Fault):
            yield number, row
        elif len(row) != len(names):
            yield number, Fault("bad-csv", f"has {len(row)} cells, where the first line has {len(names)}")
        else:
            yield number, record_of(zip(names, row))


def _text(raw: bytes | None) -> str | Fault:
    if raw is None:
        return Fault("line-too-long", "is far too long")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return Fault("not-utf8", "is not UTF-8")


def _row(
    text: str, delimiter: str, waiting: deque[tuple[int, bytes | None]], lines: Iterator[tuple[int, bytes | None]]
) -> list[str] | Fault:
    """Return the cells of a row that starts with the line ``text``; lines it did not need are put into ``waiting``."""
    taken: list[tuple[int, bytes | None]] = []
    for _ in range(_LINES_IN_A_ROW):
        row = _cells(text, delimiter)
        if row is not None or text.count('"') % 2 == 0:
            break
        item = waiting.popleft() if waiting else next(lines, None)
        if item is None:
            break
        taken.append(item)
        more = _text(item[1])
        if isinstance(more, Fault):
            break
        text += more
    else:
        row = None
    if row is None:
        waiting.extendleft(reversed(taken))
        return Fault("bad-csv", "is not CSV (an odd quote, or a zero byte)")
    return row


def _cells(text: str, delimiter: str) -> list[str] | None:
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True), None)
    except csv.Error:
        return None


def parquet_is_readable() -> bool:
    """Return whether pyarrow is installed; it is not required."""
    return importlib.util.find_spec("pyarrow") is not None


def parquet_records(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, Record | Fault]]:
    """Yield the rows of a Parquet file, each with its number from 1; only the ``wanted`` columns are read.

    Raises:
        UnreadableTableError: it is damaged, or not a Parquet file.
    """
    parquet: Any = importlib.import_module("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (OSError, ValueError, TypeError, KeyError, MemoryError) as error:  # pyarrow's own errors are among these
        raise UnreadableTableError(str(error) or type(error).__name__) from error
