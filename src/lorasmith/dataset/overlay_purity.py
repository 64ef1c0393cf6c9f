"""Tell letters that were laid over a picture from what only stands in a row like them: by their colours."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.overlay_text import FEWEST, Picture, Pieces, Row

_Float = npt.NDArray[np.float32]

_GRAIN = 3.0  # of 255, what a camera's noise and JPEG add
_PURE, _IMPURE = (0.25, 0.03), (0.4, 0.05)  # of the contrast: between the letters, and within one


def purity(small: Picture, row: Row) -> float:
    """Return how well the letters' colours are told by one colour laid over what is round them, 0 to 1.

    Letters that were laid over a picture are c = (1 - a) ground + a colour with the same a and colour everywhere, and
    even in themselves; windings of a grip have their own light and shade. See ``overlay_lines`` for the same of lines.
    """
    letters = zip(row.members.tolist(), row.hulls)
    pairs = [pair for each, hull in letters if (pair := _ink_and_ground(small, row.pieces, each, hull))]
    if len(pairs) < FEWEST - 1:
        return 0.0
    ink, ground = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    contrast = max(1.0, float(np.median(np.linalg.norm(ink - ground, axis=1))))
    x, y = ground - np.median(ground, axis=0), ink - np.median(ink, axis=0)
    share = float(np.clip((x * y).sum() / max(float((x * x).sum()), 1.0), 0, 0.8))
    between = float(np.percentile(np.linalg.norm(y - share * x, axis=1), 80))
    inside = float(np.median([pair[2] for pair in pairs]))
    pure = [
        (_IMPURE[i] - max(0.0, off - _GRAIN) / contrast) / (_IMPURE[i] - _PURE[i])
        for i, off in enumerate((between, inside))
    ]
    return float(np.prod(np.clip(pure, 0, 1)))


def _ink_and_ground(small: Picture, pieces: Pieces, member: int, hull: _Float) -> tuple[_Float, _Float, float] | None:
    """Return a piece's colour, that of what is round it, both float32 (3,), and how uneven the piece is."""
    height, width = pieces.stands.shape
    left, top = np.maximum(hull.min(0).astype(int) - 5, 0)
    right, bottom = np.minimum(hull.max(0).astype(int) + 6, (width, height))
    part = np.s_[top:bottom, left:right]
    own, stands = pieces.labels[part] == int(pieces.index[member]), pieces.stands[part]
    core = own & (stands >= 0.8 * np.percentile(stands[own], 90))
    marks = (stands >= 0.4 * np.median(stands[own])).astype(np.uint8)
    near = own.astype(np.uint8)
    ring = (cv2.dilate(near, np.ones((9, 9), np.uint8)) > 0) & (cv2.dilate(near, np.ones((5, 5), np.uint8)) == 0)
    ring &= cv2.dilate(marks, np.ones((3, 3), np.uint8)) == 0
    if core.sum() < 3 or ring.sum() < 6:
        return None
    colours = small[part].astype(np.float32)
    ink = np.median(colours[core], axis=0)
    uneven = float(np.median(np.linalg.norm(colours[core] - ink, axis=1)))
    return ink, np.median(colours[ring], axis=0), uneven
