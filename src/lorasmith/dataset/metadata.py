"""Read a file of captions that may have been written by anyone.

The formats are those of Hugging Face's ImageFolder: metadata.jsonl with one JSON object per line, metadata.csv or
metadata.parquet; each with ``file_name`` relative to the folder, and a caption.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from lorasmith.dataset import metadata_tables as tables
from lorasmith.dataset.finding import Finding, finding, shown
from lorasmith.dataset.metadata_tables import Fault, Record

NAME = "metadata.jsonl"
NAMES = (NAME, "metadata.csv", "metadata.parquet")  # the first that is there is read
CAPTION_KEYS = ("text", "caption", "prompt")
LONGEST_LINE = 1 << 20  # bytes; a caption of 77 tokens is some hundreds
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A line of a metadata file that names a file of the folder.

    Args:
        line: its number, from 1; in metadata.parquet, the number of its row.
        path: the file, resolved, inside the folder, and there.
        caption: its caption, stripped, with single spaces; a Finding if there is none that can be read.
        key: the key that the caption stood under.
    """

    line: int
    path: Path
    caption: str | Finding
    key: str


def find_metadata(folder: Path) -> Path | None:
    """Return the metadata file that is read for ``folder``, if it has one; an empty table is none."""
    for name in NAMES:
        path = folder / name
        if not _is_file(path):
            continue
        if name == NAME or (path.stat().st_size and (path.suffix == ".csv" or tables.parquet_is_readable())):
            return path
    return None


def read_metadata(folder: Path, name: str = NAME) -> Iterator[Entry | Finding]:
    """Yield what each line of ``folder``'s metadata file says, or what is wrong with it; one line at a time.

    A line that can be used all the same may be followed by a finding about it.

    Args:
        folder: resolved.
        name: one of ``NAMES``.
    """
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder):
            what = f"{folder.name}/{name} is a link to a file outside the folder."
            yield finding("unreadable-metadata", what, path)
            return
        if path.suffix != ".parquet" and _is_utf16(path):
            yield finding("utf16-metadata", f"{folder.name}/{name} is UTF-16.", path)
            return
        seen: dict[Path, int] = {}
        for number, record in _records(path):
            item = _entry(path, number, record)
            if isinstance(item, Entry):
                first = seen.setdefault(item.path, number)
                if first != number:
                    file = shown(item.path.relative_to(folder).as_posix())
                    what = f"Line {number} of {name} names {file} again, after line {first}."
                    item = finding("duplicate-entry", what, path, line=number)
            yield item
            if isinstance(record, dict) and tables.TWICE in record:
                key = shown(record[tables.TWICE])
                yield finding(
                    "duplicate-key", f'Line {number} of {name} gives "{key}" more than once.', path, line=number
                )
    except OSError as error:
        yield finding("unreadable-metadata", f"{folder.name}/{name} cannot be read: {error.strerror}.", path)
    except tables.UnreadableTableError as error:
        yield finding("unreadable-metadata", f"{folder.name}/{name} cannot be read: {shown(error)}.", path)


def clean_caption(text: str) -> str | None:
    """Return a caption on one line with single spaces, or None if it is no Unicode text (half a surrogate pair)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return " ".join(text.split())


def is_device_name(name: str) -> bool:
    """Return whether Windows takes a file's name for a device, as ``nul.png``."""
    return _DEVICES.match(name) is not None


def _is_utf16(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) in _UTF16_MARKS


def _records(path: Path) -> Iterator[tuple[int, Record | Fault]]:
    if path.suffix == ".parquet":
        yield from tables.parquet_records(path, ("file_name", *CAPTION_KEYS))
    elif path.suffix == ".csv":
        yield from tables.csv_records(_lines(path))
    else:
        yield from _json_records(path)


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line's number and bytes; None for a line that is too long to be one, which is not kept in memory."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            too_long = len(line) > LONGEST_LINE
            while too_long and line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST_LINE)
            yield number, None if too_long else line.removeprefix(_UTF8_MARK) if number == 1 else line


def _json_records(path: Path) -> Iterator[tuple[int, Record | Fault]]:
    for number, line in _lines(path):
        if line is None:
            yield number, Fault("line-too-long", f"is longer than {LONGEST_LINE:,} bytes")
        elif line.strip():
            yield number, _json_record(line)


def _json_record(line: bytes) -> Record | Fault:
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=tables.record_of)
    except UnicodeDecodeError:
        return Fault("not-utf8", "is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Fault("bad-json", f"is not JSON ({getattr(error, 'msg', 'too deep or too large')})")
    return record if isinstance(record, dict) else {}


def _entry(path: Path, number: int, record: Record | Fault) -> Entry | Finding:
    """Return what one line says."""

    def wrong(code: str, what: str) -> Finding:
        return finding(code, f"Line {number} of {path.name} {what}.", path, line=number)

    if isinstance(record, Fault):
        return wrong(record.code, record.what)
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        return wrong("bad-entry", "has no file_name")
    file = _inside(path.parent, name)
    if file is None:
        return wrong("outside-folder", f"names {shown(name)}, which is outside the folder")
    if not _is_file(file):
        return wrong("missing-file", f"names {shown(name)}, which is not there")
    key = next((k for k in CAPTION_KEYS if k in record), "")
    text = record.get(key) or ""
    caption: str | Finding | None = clean_caption(text) if key and isinstance(text, str) else None
    if caption is None:
        caption = wrong("bad-caption", f"gives {shown(name)} no text that can be read as its caption")
    return Entry(number, file, caption, key)


def _inside(folder: Path, name: str) -> Path | None:
    """Return the file that ``name`` means, or None if it leads out of the folder, by itself or through a link.

    A backslash separates folders on every system, so that a data set means the same everywhere.
    """
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or "://" in name:
        return None
    if os.name == "nt" and any(is_device_name(part) for part in windows.parts):
        return None
    try:
        path = (folder / name.replace("\\", "/")).resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, a name too long, a zero byte
        return folder / "\0"
    return path if path.is_relative_to(folder) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
