"""Find what was laid over a picture afterwards: thin straight stray lines, and text such as a watermark."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset import overlay_lines, overlay_purity, overlay_text

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]

_SIDE = 512  # pixels of the longer side that the search works on
_SMALLEST = 96  # pixels of the short side; below, edges of the subject and stray lines cannot be told apart
_LEAST = 0.2  # confidence of what is worth telling


@dataclass(frozen=True)
class Line:
    """A thin straight stray line.

    Args:
        box: left, top, right, bottom in pixels, right and bottom excluded.
        mask: bool (height, width) of the whole picture, true on the line and its soft edges.
        confidence: 0 to 1; from 0.5 on it is sure enough to be removed without asking.
        ends: x and y of both ends, in pixels.
        width: in pixels.
    """

    box: Box
    mask: Mask
    confidence: float
    ends: tuple[tuple[float, float], tuple[float, float]]
    width: float


@dataclass(frozen=True)
class TextRegion:
    """Text that was laid over the picture.

    Args:
        box: left, top, right, bottom in pixels, right and bottom excluded.
        mask: bool (height, width) of the whole picture, true on the letters and their soft edges.
        confidence: 0 to 1; from 0.5 on it is sure enough to be removed without asking.
        letters: how many pieces it has.
    """

    box: Box
    mask: Mask
    confidence: float
    letters: int


def find_lines(picture: Picture, least: float = _LEAST) -> list[Line]:
    """Find thin straight stray lines, the surest first.

    Args:
        picture: uint8 RGB (height, width, 3).
        least: the confidence below which a line is not told; the more, the faster.
    """
    small, scale = reduced(picture)
    if min(small.shape[:2]) < _SMALLEST:
        return []
    height, width = picture.shape[:2]
    found = []
    for segment, confidence in overlay_lines.find_segments(small, least):
        if confidence < least:
            continue
        start, end = segment.start / scale, segment.end / scale
        canvas = np.zeros((height, width), dtype=np.uint8)
        thick = max(3, round((segment.width + 2) / scale))
        a, b = (np.rint(point * 16).astype(int).tolist() for point in (start, end))
        cv2.line(canvas, a, b, 255, thick, cv2.LINE_8, 4)
        mask = canvas > 0
        ends = ((float(start[0]), float(start[1])), (float(end[0]), float(end[1])))
        found.append(Line(box_of(mask), mask, confidence, ends, segment.width / scale))
    return sorted(found, key=lambda line: -line.confidence)


def find_text(picture: Picture, least: float = _LEAST) -> list[TextRegion]:
    """Find overlaid text, the surest first.

    Args:
        picture: uint8 RGB (height, width, 3).
        least: the confidence below which text is not told; the more, the faster.
    """
    small, scale = reduced(picture)
    if min(small.shape[:2]) < _SMALLEST:
        return []
    height, width = picture.shape[:2]
    judged = [(overlay_text.likelihood(row.features), row) for row in overlay_text.find_rows(small)]
    found: list[TextRegion] = []
    taken = np.zeros(small.shape[:2], dtype=bool)
    for confidence, row in sorted(judged, key=lambda each: -each[0]):
        if confidence < least:
            break
        confidence *= overlay_purity.purity(small, row)
        if confidence < least or (row.mask & taken).any():  # or another level's view of the same letters
            continue
        mask = row.letters
        taken |= mask
        if scale < 1:
            mask = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.1
        found.append(TextRegion(box_of(mask), mask, confidence, len(row.members)))
    return sorted(found, key=lambda text: -text.confidence)


def box_of(mask: Mask) -> Box:
    """Return left, top, right, bottom of what is true in a mask, right and bottom excluded; all 0 if nothing is."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def reduced(picture: Picture) -> tuple[Picture, float]:
    """Return a picture at the size that lines and text are looked for at, and how many times smaller that is."""
    height, width = picture.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    if scale == 1:
        return picture, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)), scale
