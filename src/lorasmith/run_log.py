"""A run's events.jsonl, read back: what belongs to the run as its newest checkpoint has it, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorasmith.errors import RunError
from lorasmith.files import write_bytes

LOG_FILE = "events.jsonl"
_TAIL = 1 << 16  # bytes that are looked at for the last events


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log up to the first line that is damaged; none where there is no log."""
    return [record for _, record in _lines(_bytes(run))]


def last_records(run: Path) -> list[dict[str, Any]]:
    """Return some of the last records, oldest first, without reading all of the log."""
    try:
        with (run / LOG_FILE).open("rb") as stream:
            size = stream.seek(0, 2)
            start = stream.seek(max(0, size - _TAIL))
            data = stream.read()
    except OSError:
        return []
    return [record for _, record in _lines(data.partition(b"\n")[2] if start else data)]


def rewind_log(run: Path, step: int) -> list[dict[str, Any]]:
    """Cut the log after the last event of ``step`` or before, and return what stays.

    What is cut off (events of steps that are to be taken again, and a line that a kill has torn) is kept in a
    numbered file beside it. However this ends, the log is as it was or as it shall be.

    Raises:
        OutputError: the disk refuses.
    """
    data = _bytes(run)
    kept: list[dict[str, Any]] = []
    end = stay = last = 0
    for number, (line, record) in enumerate(_lines(data), start=1):
        end += len(line) + 1
        kept.append(record)
        at = record.get("step")
        if isinstance(at, int):
            if at > step:
                break
            stay, last = end, number
    if data[stay:]:
        write_bytes(_aside(run), data[stay:])
        write_bytes(run / LOG_FILE, data[:stay])
    return kept[:last]


def _bytes(run: Path) -> bytes:
    try:
        return (run / LOG_FILE).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunError(
            f"The run's events cannot be read: {error.strerror}.", where=str(run / LOG_FILE), fix="Check the disk."
        ) from error


def _lines(data: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """Return whole lines, without their ends, and their records."""
    found = []
    for line in data.split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        found.append((line, record))
    return found


def _aside(run: Path) -> Path:
    number = 1
    while (path := run / f"events-set-aside-{number:03d}.jsonl").exists():
        number += 1
    return path
