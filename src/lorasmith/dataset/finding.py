"""What is wrong or doubtful in the data: every kind of finding, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorasmith.errors import DataError

Severity = Literal["error", "warning", "info"]
_LISTED = 100
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Args:
        severity: ``error``: something that was offered is not used; ``warning``: it is used, but look at it;
            ``info``: said so that nothing is done quietly.
        about: what it is about; an error about a ``folder`` stops the work, one about a ``picture`` leaves out
            that picture, one about an ``entry`` leaves out one line of metadata.jsonl.
        fix: what to do about it, as one sentence.
    """

    severity: Severity
    about: Literal["folder", "picture", "entry"]
    fix: str


KINDS: dict[str, Kind] = {
    # A folder cannot be used at all.
    "missing-folder": Kind("error", "folder", "Check the path; one in a recipe starts at the recipe's folder."),
    "not-a-folder": Kind("error", "folder", "Name the folder that holds the pictures."),
    "unreadable-folder": Kind("error", "folder", "Give yourself the right to read it."),
    "no-pictures": Kind("error", "folder", "Put pictures (PNG, JPEG, WebP, ...) into it, or leave the folder out."),
    "folder-in-folder": Kind("error", "folder", "Name only one of the two, so that no picture is used twice."),
    "unreadable-metadata": Kind("error", "folder", "Give yourself the right to read it."),
    "utf16-metadata": Kind(
        "error",
        "folder",
        "Save it as UTF-8; in PowerShell: (Get-Content metadata.jsonl) | Set-Content -Encoding utf8 metadata.jsonl",
    ),
    "nothing-usable": Kind("error", "folder", "Mend what is listed here, or leave the folder out."),
    # A line of metadata.jsonl cannot be used.
    "bad-json": Kind("error", "entry", 'Write one object per line, as {"file_name": "1.png", "text": "a red axe"}.'),
    "not-utf8": Kind("error", "entry", "Save the file as UTF-8."),
    "line-too-long": Kind("error", "entry", "Write one picture per line."),
    "bad-entry": Kind("error", "entry", 'Give each line a "file_name" and a "text", both as strings.'),
    "outside-folder": Kind("error", "entry", "Copy the picture into the folder and name it relative to the folder."),
    "missing-file": Kind("error", "entry", "Correct the name (capitals count), or remove the line."),
    "duplicate-entry": Kind("error", "entry", "Remove one of the lines; the first is used."),
    # A picture cannot be used.
    "no-entry": Kind("error", "picture", "Add a line for it to metadata.jsonl, or move it out of the folder."),
    "bad-caption": Kind("error", "picture", "Write its caption as plain UTF-8 text."),
    "link-outside": Kind("error", "picture", "Copy the picture itself into the folder."),
    "unreadable-file": Kind("error", "picture", "Give yourself the right to read it, or remove it."),
    "empty-file": Kind("error", "picture", "Copy the picture again from where it came from, or remove it."),
    "not-a-picture": Kind("error", "picture", "Replace it with a real picture, or remove it."),
    "unsupported-format": Kind("error", "picture", "Export it as PNG or JPEG."),
    "damaged-picture": Kind("error", "picture", "Copy the picture again from where it came from, or remove it."),
    "too-many-pixels": Kind("error", "picture", "Scale the picture down."),
    "animated": Kind("error", "picture", "Save the frame that you want as a PNG."),
    # Used, but worth a look.
    "no-captions": Kind("warning", "folder", "Describe each picture in metadata.jsonl; better captions, better LoRA."),
    "empty-caption": Kind("warning", "picture", "Write what the picture shows."),
    "several-pages": Kind("warning", "picture", "Save the page that you want as a PNG, if it is not the first."),
    "duplicate-picture": Kind("warning", "picture", "Remove one of them, unless it is meant to count twice."),
    "folder-twice": Kind("warning", "folder", "Name it once; use data.balance to weigh classes."),
    "unread-metadata": Kind("warning", "folder", "Write the captions as metadata.jsonl in the folder that you name."),
    # Said so that nothing is done quietly.
    "subfolders": Kind("info", "folder", "Nothing to do, if each subfolder is a class of its own."),
    "caption-key": Kind("info", "folder", 'Nothing to do; "text" is the usual key.'),
    "unused-files": Kind("info", "folder", "Nothing to do, if none of them is meant to be a picture or a caption."),
}


@dataclass(frozen=True)
class Finding:
    """Something wrong or doubtful in the data.

    Args:
        code: a key of ``KINDS``; stable from version to version.
        severity: ``error``, ``warning`` or ``info``; see ``Kind``.
        message: what was found, as one sentence that makes sense without the other fields.
        file: the file or folder to look at.
        line: the line of ``file``, from 1.
        fix: what to do about it, as one sentence.
        excludes: a picture, or a line of metadata.jsonl, is left out because of it.
    """

    code: str
    severity: Severity
    message: str
    file: Path | None
    line: int | None
    fix: str
    excludes: bool

    @property
    def where(self) -> str:
        """The file and the line, as ``metadata.jsonl:3`` with the whole path."""
        return "" if self.file is None else shown(self.file, limit=None) + (f":{self.line}" if self.line else "")

    @property
    def fatal(self) -> bool:
        """Whether the data cannot be used at all until it is mended."""
        return self.severity == "error" and KINDS[self.code].about == "folder"

    def __str__(self) -> str:
        return self.message if self.where in self.message else f"{self.message} ({self.where})"


def finding(code: str, message: str, file: Path | None = None, *, line: int | None = None) -> Finding:
    """Return the finding of a kind that ``KINDS`` describes."""
    kind = KINDS[code]
    excludes = kind.severity == "error" and kind.about != "folder"
    return Finding(code, kind.severity, message, file, line, kind.fix, excludes)


def data_error(findings: Sequence[Finding]) -> DataError:
    """Return one DataError that lists all the findings, each with what to do."""
    if len(findings) == 1:
        only = findings[0]
        return DataError(only.message, where=only.where or None, fix=only.fix)
    lines = [f"The pictures cannot be used as they are; {len(findings)} problems:"]
    lines += [f"  - {item}\n    to do: {item.fix}" for item in findings[:_LISTED]]
    if len(findings) > _LISTED:
        lines.append(f"  - and {len(findings) - _LISTED} more")
    return DataError("\n".join(lines))


def shown(value: object, limit: int | None = _SHOWN_CHARACTERS) -> str:
    """Return text from a file or a file's name so that it is safe and short enough to print.

    Control characters and halves of surrogate pairs are escaped; more than ``limit`` characters are cut.
    """
    text = str(value)
    if limit is not None and len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
