"""Fill holes in a picture: where a line, a watermark or a stain was.

Three ways to fill, each best somewhere: Telea's fast marching (J. Graphics Tools 9, 2004) and Navier-Stokes
(Bertalmio, Bertozzi and Sapiro, CVPR 2001), both OpenCV's, continue smooth surroundings; patches copied from near by
continue texture (after Criminisi, Perez and Toyama, "Region Filling and Object Removal by Exemplar-Based Image
Inpainting", 2004, block by block). Which is best for a hole is found by trial: the same hole is punched beside it,
where the truth is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Method = Literal["telea", "ns", "patch"]
METHODS: tuple[Method, ...] = ("telea", "ns", "patch")
_Box = tuple[int, int, int, int]

_RADIUS = 4  # pixels, of Telea and Navier-Stokes
_BLOCK = 12  # pixels of a hole that are copied at once
_RIM = 8  # pixels round a block by which its source is chosen
_SEARCH = 72  # pixels, how far a source may be
_ROOM = 40  # pixels round a hole that are taken along
_LARGEST = 1536  # pixels of a hole's longer side that patches are tried for
_TRIALS = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (-1, 1), (1, -1))


@dataclass(frozen=True)
class Filled:
    """A filled hole: its box (left, top, right, bottom), how many pixels, and how it was filled."""

    box: _Box
    pixels: int
    method: Method


def fill_holes(
    picture: Picture, holes: Mask, method: Literal["auto", "telea", "ns", "patch"] = "auto"
) -> tuple[Picture, list[Filled]]:
    """Return the picture with its holes filled, and what was done to each hole; all else is unchanged.

    Args:
        picture: uint8 RGB (height, width, 3).
        holes: bool (height, width); holes that nearly touch are filled together.
        method: one for all, or ``auto``.
    """
    result = picture.copy()
    done = []
    for box, own in _regions(holes):
        left, top, right, bottom = _grown(box, _ROOM + _SEARCH, holes.shape)
        part = np.s_[top:bottom, left:right]
        around = result[part].copy()  # holes filled before this one are known by now
        others = holes[part] & ~own[part]
        hole = own[part]
        chosen = _best(around, hole, others) if method == "auto" else method
        filled = fill(around, hole, chosen, avoid=others)
        result[part][hole] = filled[hole]
        done.append(Filled(box, int(hole.sum()), chosen))
    return result, done


def fill(picture: Picture, hole: Mask, method: Method, *, avoid: Mask | None = None) -> Picture:
    """Return the picture with one hole filled in one way.

    Args:
        picture: uint8 RGB (height, width, 3).
        hole: bool (height, width).
        method: how.
        avoid: bool (height, width), pixels that are not to be copied, as other holes.
    """
    unknown = hole if avoid is None else hole | avoid
    if method == "patch":
        return _patched(picture, hole, unknown)
    flag = cv2.INPAINT_TELEA if method == "telea" else cv2.INPAINT_NS
    filled = np.asarray(cv2.inpaint(picture, unknown.astype(np.uint8), _RADIUS, flag), dtype=np.uint8)
    result = picture.copy()
    result[hole] = filled[hole]
    return result


def _regions(holes: Mask) -> list[tuple[_Box, Mask]]:
    """Return the holes, each with its box; those within a few pixels of each other are one."""
    near = cv2.dilate(holes.astype(np.uint8), np.ones((9, 9), np.uint8))
    count, labels = cv2.connectedComponents(near, connectivity=8)
    regions = []
    for index in range(1, count):
        own = (labels == index) & holes
        columns, rows = np.flatnonzero(own.any(0)), np.flatnonzero(own.any(1))
        if len(rows):
            regions.append(((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1), own))
    return regions


def _grown(box: _Box, by: int, shape: tuple[int, ...]) -> _Box:
    left, top, right, bottom = box
    return max(0, left - by), max(0, top - by), min(shape[1], right + by), min(shape[0], bottom + by)


def _best(around: Picture, hole: Mask, others: Mask) -> Method:
    """Return the method that fills the same hole best where it is punched beside the real one."""
    methods = METHODS if max(hole.shape) <= _LARGEST else METHODS[:2]
    errors = dict.fromkeys(methods, 0.0)
    for trial in _trials(hole, others):
        punched = around.copy()
        punched[trial] = 0
        for method in methods:
            got = fill(punched, trial, method, avoid=hole | others)
            errors[method] += float(np.square(got[trial].astype(np.float32) - around[trial]).mean())
    return min(methods, key=lambda m: (errors[m], METHODS.index(m)))


def _trials(hole: Mask, others: Mask) -> list[Mask]:
    """Return the hole moved to known places beside it, at most two; parts that leave the picture are cut off."""
    rows, columns = np.nonzero(hole)
    tall, wide = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    unknown = cv2.dilate((hole | others).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    found = []
    for dx, dy in _TRIALS:
        for step in (10, 24, max(24, min(tall, wide, 60))):
            moved = np.zeros_like(hole)
            r, c = rows + dy * step, columns + dx * step
            inside = (r >= 2) & (c >= 2) & (r < hole.shape[0] - 2) & (c < hole.shape[1] - 2)
            moved[r[inside], c[inside]] = True
            moved &= ~unknown
            if moved.sum() >= 0.6 * len(rows):
                found.append(moved)
                break
        if len(found) == 2:
            break
    return found


def _patched(picture: Picture, hole: Mask, unknown: Mask) -> Picture:
    """Fill a hole block by block, from its rim inward, each block from the place that fits its rim best."""
    result = cv2.inpaint(picture, unknown.astype(np.uint8), _RADIUS, cv2.INPAINT_TELEA)  # where no place fits
    result = np.asarray(result, dtype=np.uint8)
    sources = ~cv2.dilate(unknown.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    todo = hole.copy()
    while todo.any():
        block = _next_block(todo)
        _copy_block(result, todo, unknown & todo | unknown & ~hole, sources, block)
        left, top, right, bottom = block
        todo[top:bottom, left:right] = False
    keep = ~hole
    result[keep] = picture[keep]
    return result


def _next_block(todo: Mask) -> _Box:
    """Return the block of unfilled pixels with most known pixels round it."""
    height, width = todo.shape
    depth = cv2.boxFilter(todo.astype(np.float32), -1, (_BLOCK + 2 * _RIM,) * 2, borderType=cv2.BORDER_REPLICATE)
    depth[~todo] = np.inf
    y, x = divmod(int(np.argmin(depth)), width)
    left, top = max(0, x - _BLOCK // 2), max(0, y - _BLOCK // 2)
    return left, top, min(width, left + _BLOCK), min(height, top + _BLOCK)


def _copy_block(result: Picture, todo: Mask, unknown: Mask, sources: Mask, block: _Box) -> None:
    outer = _grown(block, _RIM, todo.shape)
    window = _grown(outer, _SEARCH, todo.shape)
    part = np.s_[outer[1] : outer[3], outer[0] : outer[2]]
    known = ~unknown[part]
    if known.sum() < 12:
        return
    template, search = result[part], result[window[1] : window[3], window[0] : window[2]]
    weights = np.repeat(known[..., None].astype(np.float32), 3, -1)
    cost = cv2.matchTemplate(search.astype(np.float32), template.astype(np.float32), cv2.TM_SQDIFF, mask=weights)
    usable = sources[window[1] : window[3], window[0] : window[2]].astype(np.uint8)
    shape = template.shape[:2]
    whole = cv2.erode(usable, np.ones(shape, np.uint8), anchor=(0, 0), borderValue=0)[: cost.shape[0], : cost.shape[1]]
    cost = np.where(whole > 0, cost, np.inf)
    if not np.isfinite(cost).any():
        return
    y, x = divmod(int(np.argmin(cost)), cost.shape[1])
    source = search[y : y + shape[0], x : x + shape[1]].copy()
    inner = np.zeros(shape, dtype=bool)
    inner[block[1] - outer[1] : block[3] - outer[1], block[0] - outer[0] : block[2] - outer[0]] = True
    take = inner & todo[part]
    result[part][take] = source[take]
