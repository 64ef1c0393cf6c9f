"""Profiles across lines: sampled from a picture, centred, and screened many at a time.

Following and measuring one line takes about a millisecond, and a photo has dozens of straight edges that might be
one; ``promising`` looks at all of them at once and tells which are worth it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.quantiles import median

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
_Float = npt.NDArray[np.float32]

HALF = 8  # pixels to each side that a profile shows
_STEPS = 24  # along a line, when many are looked at
_PIECES = 6  # of a line, that are centred one by one
_FAINTEST = 3.5  # of 255: lines as strong as 4.5 are measured
_WIDEST = 6.5  # pixels, as of a stray line that is measured
_ASIDE = 2.5  # pixels from the middle of its profile; of a stray line up to 2
_COVERED = 0.7  # of the length; 0.86 of a stray line stands out
_IMPUREST = 0.18  # of the contrast; a stray line has at most 0.12, see ``overlay_lines``
_GRAIN = 3.0  # of 255, what a camera's noise and JPEG add


def sampled(small: Picture, grid: _Float) -> _Float:
    """Return a picture's colours at points, float32 (..., 3).

    Args:
        small: uint8 RGB (height, width, 3).
        grid: x and y of each point, float32 (rows, columns, 2).
    """
    colours = cv2.remap(small, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(colours, dtype=np.float32)


def peaks(middle: _Float) -> _Float:
    """Return how far lines lie from the middle of their profiles, in parts of a pixel.

    Args:
        middle: the typical profile of each, float32 (n, 17, 3).
    """
    outside = (middle[:, 1:4].mean(1) + middle[:, 13:16].mean(1)) / 2
    away = np.linalg.norm(middle[:, 3:14] - outside[:, None], axis=2) + 1e-3 * (5 - np.abs(np.arange(-5, 6)))
    peak = np.argmax(away[:, 1:-1], axis=1) + 1
    rows = np.arange(len(away))
    around = np.stack([away[rows, peak - 1], away[rows, peak], away[rows, peak + 1]], axis=1)
    weights = np.maximum(around - 0.4 * around[:, 1:2], 1e-6)
    return np.asarray(peak - 5 + (weights[:, 2] - weights[:, 0]) / weights.sum(1))


def promising(small: Picture, seeds: Sequence[tuple[_Float, _Float]]) -> Mask:
    """Return which segments may be stray lines when each is measured, bool (n,).

    It is thin, stands out nearly all along, and has one colour laid over its sides; all with a margin, for this is
    measured between a segment's two ends and on fewer steps.

    Args:
        small: uint8 RGB (height, width, 3).
        seeds: their ends, x and y.
    """
    if not len(seeds):
        return np.zeros(0, dtype=bool)
    ends = np.array(seeds, dtype=np.float32)
    for _ in range(2):
        ends = _centred(ends, profiles(small, ends))
    colours = profiles(small, ends)
    sides = (colours[:, :, 2:5].mean(2) + colours[:, :, 12:15].mean(2)) / 2
    contrast = colours[:, :, 7:10].mean(2) - sides
    typical = median(contrast, 1)
    strength = np.maximum(np.linalg.norm(typical, axis=1), 1e-6)
    agree = np.einsum("nsc,nc->ns", contrast, typical) / strength[:, None]
    stands = agree > 0.4 * strength[:, None]
    covered = (stands | _crossing(colours, strength)).mean(1)
    thin = _widths(colours, typical, strength) <= _WIDEST
    central = np.abs(peaks(median(colours, 1))) <= _ASIDE
    pure = _impurity(colours[:, :, HALF], sides, strength) <= _IMPUREST
    return np.asarray((strength > _FAINTEST) & (covered >= _COVERED) & thin & central & pure)


def profiles(small: Picture, ends: _Float) -> _Float:
    """Return the colours across segments, float32 (n, steps, 17, 3).

    Args:
        small: uint8 RGB (height, width, 3).
        ends: float32 (n, 2, 2), of each segment x and y of both ends.
    """
    along = ends[:, 1] - ends[:, 0]
    length = np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / length
    place = np.linspace(0, 1, _STEPS, dtype=np.float32)
    points = ends[:, None, 0] + place[None, :, None] * along[:, None]
    across = np.arange(-HALF, HALF + 1, dtype=np.float32)
    grid = points[:, :, None] + across[None, None, :, None] * normal[:, None, None]
    flat = np.ascontiguousarray(grid.reshape(len(ends) * _STEPS, len(across), 2), dtype=np.float32)
    return sampled(small, flat).reshape(len(ends), _STEPS, len(across), 3)


def _centred(ends: _Float, colours: _Float) -> _Float:
    """Return segments moved onto their lines, as ``overlay_lines`` does it, but all at once."""
    count = len(ends)
    parts = colours.reshape(count * _PIECES, _STEPS // _PIECES, *colours.shape[2:])
    shift = peaks(median(parts, 1)).reshape(count, _PIECES)
    place = ((np.arange(_PIECES) + 0.5) * (_STEPS // _PIECES) - 0.5) / (_STEPS - 1)
    slope, base = straight(place.astype(np.float32), shift)
    along = ends[:, 1] - ends[:, 0]
    length = np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / length
    return np.stack([ends[:, 0] + normal * base, ends[:, 1] + normal * (base + slope)], axis=1).astype(np.float32)


def straight(place: _Float, shift: _Float) -> tuple[_Float, _Float]:
    """Return slope and base, float (n, 1) each, of the straight lines through values, whatever a few of them say.

    Args:
        place: where the values are, float (k,).
        shift: float (n, k).
    """
    rows = np.arange(len(shift))
    good = np.ones(shift.shape, dtype=bool)
    for _ in range(3):
        total = good.sum(1, keepdims=True)
        mean_place, mean_shift = ((good * each).sum(1, keepdims=True) / total for each in (place, shift))
        away = good * (place - mean_place)
        slope = (away * (shift - mean_shift)).sum(1, keepdims=True) / np.maximum((away**2).sum(1, keepdims=True), 1e-9)
        base = mean_shift - slope * mean_place
        off = np.abs(shift - (slope * place + base))
        count = good.sum(1)
        ordered = np.sort(np.where(good, off, np.inf), axis=1)
        usual = ((ordered[rows, (count - 1) // 2] + ordered[rows, count // 2]) / 2)[:, None]
        near = good & (off <= np.maximum(1.0, 2.0 * usual))
        good = np.where(near.sum(1, keepdims=True) >= 2, near, good)
    return slope, base


def _crossing(colours: _Float, strength: _Float) -> Mask:
    """Return where a line of one colour lies across something else, see ``overlay_lines``; bool (n, steps)."""
    middle = colours[:, :, 7:10].mean(2)
    own = median(middle, 1)[:, None]
    left, right = middle - colours[:, :, 2:5].mean(2), middle - colours[:, :, 12:15].mean(2)
    differs = np.minimum(np.linalg.norm(left, axis=2), np.linalg.norm(right, axis=2)) > 0.25 * strength[:, None]
    alike = np.linalg.norm(middle - own, axis=2) < 0.4 * strength[:, None]
    return np.asarray(differs & alike & ((left * right).sum(2) > 0))


def _widths(colours: _Float, typical: _Float, strength: _Float) -> _Float:
    outside = median(np.concatenate([colours[:, :, :4], colours[:, :, 13:]], axis=2).reshape(len(colours), -1, 3), 1)
    across = np.einsum("npc,nc->np", median(colours, 1) - outside[:, None], typical) / strength[:, None]
    return np.asarray((across[:, 3:14] > across[:, 6:11].max(1, keepdims=True) / 2).sum(1), dtype=np.float32)


def _impurity(middle: _Float, sides: _Float, strength: _Float) -> _Float:
    x, y = sides - median(sides, 1)[:, None], middle - median(middle, 1)[:, None]
    share = np.clip((x * y).sum((1, 2)) / np.maximum((x * x).sum((1, 2)), 1.0), 0, 0.8)
    off = np.percentile(np.linalg.norm(y - share[:, None, None] * x, axis=2), 80, axis=1)
    return np.asarray(np.maximum(0.0, off - _GRAIN) / strength, dtype=np.float32)
