"""Captions as a sheet to edit: a table of tabs that spreadsheets and editors open, and how it is read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from lorasmith.dataset.caption import Proposal
from lorasmith.dataset.caption_file import caption_of, mark, sources
from lorasmith.dataset.contents import Contents, Listed
from lorasmith.dataset.finding import shown
from lorasmith.dataset.metadata import LONGEST_LINE, clean_caption
from lorasmith.errors import DataError, OutputError
from lorasmith.files import write_new

COLUMNS = ("picture", "caption", "before", "made_by")
_FIX = "Write the sheet anew with --review, and change its second column only."


def write_sheet(path: Path, contents: Sequence[Contents], proposals: Sequence[Proposal]) -> int:
    """Write a row for each picture, with its proposal or else its caption, and return how many have a proposal.

    Raises:
        OutputError: the disk refuses, or a file of that name is there.
    """
    by_path = {proposal.path: proposal for proposal in proposals}
    text = io.StringIO()
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in contents:
        made = sources(each.folder, each)
        for listed in each.listed:
            now = caption_of(listed.caption)
            proposal = by_path.get(listed.path) or Proposal(listed.path, now, now, made.get(listed.path, ""))
            note = mark(proposal.source, proposal.caption) if proposal.source else ""
            writer.writerow((str(listed.path), proposal.caption, now, note))
    if not write_new(path, text.getvalue().encode("utf-8-sig", "backslashreplace")):  # the mark is for Excel
        raise OutputError("The sheet is already there.", where=str(path), fix="Name another with --sheet, or move it.")
    return len(by_path)


def read_sheet(path: Path, contents: Sequence[Contents]) -> list[Proposal]:
    """Return the captions of a sheet that differ from those there are; empty ones stand for no change.

    Raises:
        DataError: the sheet cannot be read, or names pictures that are not in the folders; all lines are listed.
    """
    try:
        if path.stat().st_size > 100 * LONGEST_LINE:
            raise DataError("The sheet is far too large.", where=str(path), fix=_FIX)
        rows = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), dialect="excel-tab"))
    except OSError as error:
        raise DataError(f"The sheet cannot be read: {error.strerror}.", where=str(path), fix=_FIX) from error
    except (UnicodeDecodeError, csv.Error) as error:
        fix = "Save it as text with tabs, in UTF-8."
        raise DataError("The sheet is no UTF-8 text with tabs.", where=str(path), fix=fix) from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise DataError(f"The sheet's first line is not {', '.join(COLUMNS)}.", where=str(path), fix=_FIX)
    pictures = {str(listed.path): listed for each in contents for listed in each.listed}
    proposals, problems = [], []
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        cells = [*row, "", "", ""][: len(COLUMNS)]
        listed, caption = pictures.get(cells[0]), clean_caption(cells[1])
        if listed is None or caption is None:
            problems.append(f"row {number}: {shown(cells[0])} is not a picture of the folders")
        elif caption and caption != caption_of(listed.caption):
            proposals.append(_proposal(listed, caption, cells))
    if problems:
        listed_problems = "".join(f"\n  - {problem}" for problem in problems[:20])
        raise DataError(f"The sheet does not fit the folders:{listed_problems}", where=str(path), fix=_FIX)
    return proposals


def _proposal(listed: Listed, caption: str, cells: Sequence[str]) -> Proposal:
    source = cells[3].rpartition("#")[0]
    by_program = bool(source) and mark(source, caption) == cells[3]
    return Proposal(listed.path, caption, cells[2], source if by_program else "")
