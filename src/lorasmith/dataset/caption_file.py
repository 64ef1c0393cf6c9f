"""Write captions into a folder's metadata.jsonl; what was there before is kept in a file with a number."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.dataset import metadata
from lorasmith.dataset.contents import Caption, Contents, list_contents
from lorasmith.dataset.finding import data_error
from lorasmith.dataset.folder import Folder
from lorasmith.files import json_text, write_bytes, write_new

SOURCE_KEY = "caption_source"


@dataclass(frozen=True)
class NewCaption:
    """A caption to be written.

    Args:
        text: the caption.
        source: what made it, as "template" or a model's name; empty for a person.
        was: what the caption must still be for it to be replaced; so a change made meanwhile is never lost.
    """

    text: str
    source: str
    was: str


@dataclass(frozen=True)
class Written:
    """What a save did.

    Args:
        path: metadata.jsonl.
        backup: what was there before the first save, if anything was.
        kept: pictures whose caption someone changed meanwhile, which stays.
    """

    path: Path
    backup: Path | None
    kept: tuple[Path, ...]


def mark(source: str, text: str) -> str:
    """Return the note that stands beside a caption that a program made: what made it, and a hash of the caption.

    When a person then changes the caption, the hash no longer fits, and the caption is known to be a person's.
    """
    return f"{source}#{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"


def sources(folder: Folder, contents: Contents) -> dict[Path, str]:
    """Return what made each caption, where a program did and no person changed it since."""
    notes = {path: record.get(SOURCE_KEY) for path, (_, record, _) in _records(folder.path).items()}
    found = {}
    for listed in contents.listed:
        note = notes.get(listed.path)
        if isinstance(note, str) and isinstance(listed.caption, Caption):
            source = note.rpartition("#")[0]
            if source and note == mark(source, listed.caption.text):
                found[listed.path] = source
    return found


def caption_of(caption: Caption | Any) -> str:
    """Return the caption that someone wrote; empty where there is none, or only the folder's name stands for it."""
    return caption.text if isinstance(caption, Caption) and caption.file is not None else ""


class CaptionFile:
    """The metadata.jsonl of one folder. Other keys and lines, damaged ones too, are kept as they are."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._backup: Path | None = None
        self._saved = False

    def save(self, captions: Mapping[Path, NewCaption]) -> Written:
        """Write the captions into the file, in one step; the first time, keep what was there as metadata.jsonl.1, ...

        The file is read anew each time, so that what someone writes into it meanwhile stays.

        Args:
            captions: for pictures of the folder, by their resolved paths.

        Raises:
            DataError: the folder's captions cannot be read.
            OutputError: the disk refuses.
        """
        contents = list_contents(self._folder)
        if fatal := [f for f in contents.findings if f.fatal]:
            raise data_error(fatal)
        path = self._folder.path / metadata.NAME
        before = path.read_bytes() if path.is_file() else None
        lines = [line.rstrip(b"\r") for line in before.removesuffix(b"\n").split(b"\n")] if before else []
        records = _records(self._folder.path)
        kept = []
        for listed in contents.listed:
            new, now = captions.get(listed.path), caption_of(listed.caption)
            if new is not None and now not in (new.was, new.text):
                kept.append(listed.path)
                new = None
            if listed.path in records:
                number, record, key = records[listed.path]
                if new is not None:
                    lines[number - 1] = _line({**record, key or "text": new.text}, new)
            elif new is not None or (before is None and isinstance(listed.caption, Caption)):  # a new file names all
                name = listed.path.relative_to(self._folder.path).as_posix()
                lines.append(_line({"file_name": name, "text": now if new is None else new.text}, new))
        after = b"\n".join([*lines, b""])
        if after != before:
            if before is not None and not self._saved:
                self._backup = _keep(path, before)
            write_bytes(path, after)
            self._saved = True
        return Written(path, self._backup, tuple(kept))


def _line(record: dict[str, Any], new: NewCaption | None) -> bytes:
    if new is not None:
        record.pop(SOURCE_KEY, None)
        if new.source:
            record[SOURCE_KEY] = mark(new.source, new.text)
    try:
        return json_text(record).encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair under another key
        return json.dumps(record).encode("ascii")


def _records(folder: Path) -> dict[Path, tuple[int, dict[str, Any], str]]:
    """Return the line, record and caption key of each picture that metadata.jsonl names."""
    path = folder / metadata.NAME
    if not path.is_file():
        return {}
    entries = [item for item in metadata.read_metadata(folder) if isinstance(item, metadata.Entry)]
    lines = path.read_bytes().split(b"\n")
    found: dict[Path, tuple[int, dict[str, Any], str]] = {}
    for entry in entries:
        record = json.loads(lines[entry.line - 1].decode("utf-8-sig"))
        found.setdefault(entry.path, (entry.line, record, entry.key))
    return found


def _keep(path: Path, data: bytes) -> Path:
    for number in itertools.count(1):
        backup = path.with_name(f"{path.name}.{number}")
        if not backup.exists() and write_new(backup, data):
            return backup
    raise AssertionError("unreachable")
