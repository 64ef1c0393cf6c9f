"""Read a metadata.jsonl that may have been written by anyone.

The format is that of Hugging Face's ImageFolder: one JSON object per line, ``file_name`` relative to the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from lorasmith.dataset.finding import Finding, finding, shown

NAME = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption", "prompt")
LONGEST_LINE = 1 << 20  # bytes; a caption of 77 tokens is some hundreds
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Entry:
    """A line of metadata.jsonl that names a file of the folder.

    Args:
        line: its number, from 1.
        path: the file, resolved, inside the folder, and there.
        caption: its caption, stripped, with single spaces; a Finding if there is none that can be read.
        key: the key that the caption stood under.
    """

    line: int
    path: Path
    caption: str | Finding
    key: str


def read_metadata(folder: Path) -> Iterator[Entry | Finding]:
    """Yield what each line of ``folder``'s metadata.jsonl says, or what is wrong with it; one line at a time.

    Args:
        folder: resolved.
    """
    path = folder / NAME
    try:
        with path.open("rb") as stream:
            if stream.read(2) in _UTF16_MARKS:
                yield finding("utf16-metadata", f"{folder.name}/{NAME} is UTF-16.", path)
                return
        seen: dict[Path, int] = {}
        for number, line in _lines(path):
            item = _entry(folder, path, number, line)
            if isinstance(item, Entry):
                first = seen.setdefault(item.path, number)
                if first != number:
                    name = shown(item.path.relative_to(folder).as_posix())
                    what = f"Line {number} of {NAME} names {name} again, after line {first}."
                    item = finding("duplicate-entry", what, path, line=number)
            if item is not None:
                yield item
    except OSError as error:
        yield finding("unreadable-metadata", f"{folder.name}/{NAME} cannot be read: {error.strerror}.", path)


def clean_caption(text: str) -> str | None:
    """Return a caption on one line with single spaces, or None if it is no Unicode text (half a surrogate pair)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return " ".join(text.split())


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


def _entry(folder: Path, path: Path, number: int, line: bytes | None) -> Entry | Finding | None:
    """Return what one line says; None if it is blank."""

    def wrong(code: str, what: str) -> Finding:
        return finding(code, f"Line {number} of {NAME} {what}.", path, line=number)

    if line is None:
        return wrong("line-too-long", f"is longer than {LONGEST_LINE:,} bytes")
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return wrong("not-utf8", "is not UTF-8")
    except (ValueError, RecursionError) as error:
        return wrong("bad-json", f"is not JSON ({getattr(error, 'msg', 'too deep or too large')})")
    name = record.get("file_name") if isinstance(record, dict) else None
    if not isinstance(name, str) or not name:
        return wrong("bad-entry", "has no file_name")
    file = _inside(folder, name)
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
    if windows.drive or windows.root:
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
