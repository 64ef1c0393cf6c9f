"""What is wrong or doubtful in the data; the kinds of it are in ``kinds``, ``kinds_look`` and ``kinds_caption``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasmith.dataset.kinds import READING, Kind, Severity
from lorasmith.dataset.kinds_caption import CAPTIONS
from lorasmith.dataset.kinds_look import LOOKING
from lorasmith.errors import DataError

KINDS: dict[str, Kind] = {**READING, **LOOKING, **CAPTIONS}
_LISTED = 100
_SHOWN_CHARACTERS = 80


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
        excludes: a picture, or a line of a metadata file, is left out because of it.
        related: other files that it is about, as the rest of a group of duplicates.
    """

    code: str
    severity: Severity
    message: str
    file: Path | None
    line: int | None
    fix: str
    excludes: bool
    related: tuple[Path, ...] = ()

    @property
    def where(self) -> str:
        """The file and the line, as ``metadata.jsonl:3`` with the whole path."""
        return "" if self.file is None else shown(self.file, limit=None) + (f":{self.line}" if self.line else "")

    @property
    def fatal(self) -> bool:
        """Whether the data cannot be used at all until it is mended."""
        return self.severity == "error" and self.about == "folder"

    @property
    def about(self) -> str:
        """What it is about; see ``Kind``. Empty for a code that is not in ``KINDS``."""
        return KINDS[self.code].about if self.code in KINDS else ""

    def __str__(self) -> str:
        return self.message if self.where in self.message else f"{self.message} ({self.where})"


def finding(
    code: str, message: str, file: Path | None = None, *, line: int | None = None, related: Sequence[Path] = ()
) -> Finding:
    """Return the finding of a kind that ``KINDS`` describes."""
    kind = KINDS[code]
    excludes = kind.severity == "error" and kind.about != "folder"
    return Finding(code, kind.severity, message, file, line, kind.fix, excludes, tuple(related))


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
