"""Where in a picture a thin straight line may lie: Hough's transform of thin ridges."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.quantiles import quantile

Picture = npt.NDArray[np.uint8]
Seed = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # x and y of both ends

CONTRAST = 9  # of 255, that a line differs from both sides
_REACH = 4  # pixels from a line to its sides, so lines of up to 3 pixels are found
_SEEDS = 80  # that are looked at
_MARKS = 3000  # that Hough's transform gets at most
_TILE = 64  # pixels of the pattern by which marks are left out
_VOTES, _LONG = 0.12, 0.15  # of the longer side: marks and length of a seed
_GAP = 0.02  # of the longer side: between marks of a seed ...
_SKIPPED = 5  # ... or as much as so many marks would fill, where marks are left out
_ROUND, _TOGETHER = 5, 4  # pixels of a window, and how many marks it holds on a line; a whole line gives 5
_ACROSS = np.ones((1, 3), np.uint8)


def line_seeds(small: Picture) -> list[Seed]:
    """Return segments that may be lines in a picture of about 512 pixels, the longest first."""
    return seeds_among(*thinned(marks_of(small)))


def ridge_of(picture: Picture, reach: int = _REACH) -> Picture:
    """Return how much each pixel is brighter, or darker, than both sides of a thin line through it.

    Args:
        picture: uint8 (height, width, 3).
        reach: pixels to the sides.

    Returns:
        uint8 (height, width): the largest of the channels' and the directions'.
    """
    height, width = picture.shape[:2]
    picture = np.ascontiguousarray(picture)
    padded = cv2.copyMakeBorder(picture, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    ridge, side = np.zeros_like(picture), np.empty_like(picture)
    slant = max(1, round(reach * 0.71))
    for dx, dy in ((reach, 0), (0, reach), (slant, slant), (slant, -slant)):
        a = padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        b = padded[reach - dy : reach - dy + height, reach - dx : reach - dx + width]
        cv2.max(ridge, cv2.subtract(picture, cv2.max(a, b, dst=side), dst=side), dst=ridge)
        cv2.max(ridge, cv2.subtract(cv2.min(a, b, dst=side), picture, dst=side), dst=ridge)
    red, green, blue = cv2.split(ridge)
    return np.asarray(cv2.max(cv2.max(red, green), blue))


def marks_of(small: Picture) -> Picture:
    """Return 1 on the crests of what may be thin lines, uint8 (height, width)."""
    ridge = ridge_of(small)
    level = max(CONTRAST, int(quantile(ridge[::3, ::3], 0.94)))
    crest = cv2.min(cv2.dilate(ridge, _ACROSS), cv2.dilate(ridge, _ACROSS.T))  # thinner, so faster
    marks = ((ridge >= level) & (ridge >= crest)).view(np.uint8)
    beside = cv2.boxFilter(marks, -1, (_ROUND, _ROUND), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(cv2.min(marks, (beside >= _TOGETHER).view(np.uint8)))  # a line's have others of it beside them


def thinned(marks: Picture) -> tuple[Picture, float]:
    """Return about ``_MARKS`` of the marks, evenly drawn, or all if they are fewer, and which share that is.

    Hough's transform takes as long as there are marks; a line that keeps every third of its marks is still found.
    """
    share = _MARKS / max(1, cv2.countNonZero(marks))
    if share >= 1:
        return marks, 1.0
    tile = (np.random.default_rng(0).random((_TILE, _TILE)) < share).view(np.uint8)
    height, width = marks.shape
    kept = np.tile(tile, (-(-height // _TILE), -(-width // _TILE)))[:height, :width]
    return np.asarray(cv2.min(marks, np.ascontiguousarray(kept))), share


def seeds_among(marks: Picture, share: float) -> list[Seed]:
    """Return segments that may be lines, as their two ends, the longest first.

    Args:
        marks: uint8 (height, width).
        share: of all marks that these are.
    """
    side = max(marks.shape)
    gap = max(_GAP * side, _SKIPPED / share if share < 1 else 0)
    found = cv2.HoughLinesP(marks, 1, np.pi / 180, int(_VOTES * share * side), None, _LONG * side, gap)
    if found is None:
        return []
    ends = found.reshape(-1, 2, 2)[:_SEEDS].astype(np.float32)
    lengths = np.hypot(*(ends[:, 1] - ends[:, 0]).T)
    return [(start, end) for start, end in ends[np.argsort(-lengths, kind="stable")]]
