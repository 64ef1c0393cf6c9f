"""Before/after sheets: a page of pairs for each operation, and every step of one picture at full size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lorasmith.dataset.finding import shown
from lorasmith.files import new_folder, write_bytes

Picture = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

_THUMB = 224  # pixels
_LABEL = 18
_ACROSS, _DOWN = 4, 6  # pairs on a page
_GAP = 6
_INK, _PAPER, _MARK = (24, 24, 24), (246, 246, 244), (235, 40, 40)


@dataclass(frozen=True)
class Change:
    """One operation on one picture, to be shown.

    Args:
        operation: its name.
        label: the picture's name.
        before: uint8 RGB.
        after: uint8 RGB; its size may differ.
        boxes: places in ``before`` to mark: left, top, right, bottom in its pixels.
    """

    operation: str
    label: str
    before: Picture
    after: Picture
    boxes: tuple[Box, ...] = ()


def thumbnail(picture: Picture, side: int = _THUMB, boxes: Sequence[Box] = ()) -> Picture:
    """Return a picture scaled to fit a square, with boxes marked; a small one is not enlarged."""
    image = Image.fromarray(picture)
    scale = min(1.0, side / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), reducing_gap=3.0)
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes:
        corners = (left * scale - 3, top * scale - 3, right * scale + 2, bottom * scale + 2)
        draw.rectangle(corners, outline=_MARK, width=2)
    return np.array(image)


def small(change: Change) -> Change:
    """Return a change with its pictures as thumbnails, so that a page of them fits into memory."""
    before = thumbnail(change.before, boxes=change.boxes)
    return Change(change.operation, change.label, before, thumbnail(change.after))


@dataclass
class Sheets:
    """Writes a page for each operation whenever enough pairs have come together."""

    folder: Path
    waiting: dict[str, list[Change]] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    def add(self, change: Change) -> None:
        """Take one pair of thumbnails.

        Raises:
            OutputError: a page is full and cannot be written.
        """
        page = self.waiting.setdefault(change.operation, [])
        page.append(change)
        if len(page) == _ACROSS * _DOWN:
            self._write(change.operation)

    def finish(self) -> tuple[Path, ...]:
        """Write the pages that are not full and return all pages.

        Raises:
            OutputError: a page cannot be written.
        """
        for operation in sorted(self.waiting):
            if self.waiting[operation]:
                self._write(operation)
        return tuple(sorted(self.written))

    def _write(self, operation: str) -> None:
        number = 1 + sum(path.name.startswith(f"{operation}-") for path in self.written)
        path = new_folder(self.folder) / f"{operation}-{number:02d}.png"
        write_bytes(path, png(_page(self.waiting[operation])))
        self.waiting[operation] = []
        self.written.append(path)


def _page(changes: Sequence[Change]) -> Picture:
    wide, tall = 2 * _THUMB + _GAP, _THUMB + _LABEL
    across = min(_ACROSS, len(changes))
    down = -(-len(changes) // across)
    image = Image.new("RGB", (across * (wide + 2 * _GAP), down * (tall + 2 * _GAP) + _LABEL), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    draw.text((_GAP, 2), f"{changes[0].operation}: before | after", _INK, font)
    for index, change in enumerate(changes):
        x = index % across * (wide + 2 * _GAP) + _GAP
        y = index // across * (tall + 2 * _GAP) + _GAP + _LABEL
        draw.text((x, y), shown(change.label, 60), _INK, font)
        for column, part in enumerate((change.before, change.after)):
            image.paste(Image.fromarray(part), (x + column * (_THUMB + _GAP), y + _LABEL))
    return np.array(image)


def full_size(changes: Sequence[Change], picture: Picture) -> Picture:
    """Return every change of one picture at full size, one below the other, before at the left and after at the right.

    Args:
        changes: in the order they were made; none gives the picture alone.
        picture: what came out in the end, uint8 RGB.
    """
    rows = list(changes) or [Change("unchanged", "", picture, picture)]
    wide = max(c.before.shape[1] + c.after.shape[1] for c in rows) + 3 * _GAP
    tall = sum(max(c.before.shape[0], c.after.shape[0]) + _LABEL + _GAP for c in rows)
    image = Image.new("RGB", (wide, tall), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    y = 0
    for change in rows:
        draw.text((_GAP, y + 1), f"{change.operation}  {shown(change.label, 60)}", _INK, font)
        before = thumbnail(change.before, max(change.before.shape[:2]), change.boxes)
        image.paste(Image.fromarray(before), (_GAP, y + _LABEL))
        image.paste(Image.fromarray(change.after), (2 * _GAP + before.shape[1], y + _LABEL))
        y += max(before.shape[0], change.after.shape[0]) + _LABEL + _GAP
    return np.array(image)


def png(picture: Picture) -> bytes:
    """Return a picture as the bytes of a PNG file; the same picture gives the same bytes."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=6)
    return stream.getvalue()
