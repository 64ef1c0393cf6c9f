"""Find text that was laid over a picture, such as a watermark, without a model.

Letters are thin against their surroundings, alike in height, strength and stroke, and stand in a row at even
distances, whichever way the row runs. Pieces that are brighter or darker than what lies round them (morphological
top hats) are joined into rows, and a row is judged by a logistic regression over what its pieces have in common.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.overlay_text_weights import MEANS, SPREADS, SURE, WEIGHTS
from lorasmith.dataset.subject import Labels, parts_of

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
_Float = npt.NDArray[np.float32]

SIDE = 512  # pixels of the longer side that the search works on
_STROKE = 13  # pixels; wider strokes are not found
_LEVELS = (9, 18, 34)  # of 255, how much a piece stands out
_PIECES = 200  # more than these and it is texture ...
_DENSE = 0.2  # ... as it is if a larger share of the picture stands out
_PAIRS = 200
FEWEST = 4  # letters in a row
_SMALLEST = 10  # pixels of a letter
_ONE_SHAPE, _EQUAL_GAPS = 0.12, 0.2  # spread of log(width / height), and of the gaps as a share of their mean
_CROOKED = 0.16  # of a piece's size, off the line: of its centres, or of its upper or lower ends; text has up to 0.12
_RAGGED, _UNEVEN, _HOLLOW = 0.7, 0.25, 0.4  # limits of "gaps", "stroke_spread", "solidity"; text has 0.58, 0.2, 0.46

FEATURES = (
    "pieces", "offset", "gaps", "contrast", "solidity", "share", "stroke", "stroke_spread", "aspects", "sizes", "level",
    "base", "top", "ground", "hue",
)  # fmt: skip


@dataclass(frozen=True)
class Pieces:
    """Pieces that stand out at one level; what only rows are judged by is measured of their members alone."""

    labels: Labels
    index: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int32]
    area: npt.NDArray[np.int32]
    centre: _Float
    size: _Float
    aspect: _Float
    contrast: _Float
    stands: Picture

    def __len__(self) -> int:
        return len(self.index)

    def own(self, member: int) -> tuple[tuple[slice, slice], Mask]:
        """Return the part of the picture that a piece's box takes, and where in it the piece is."""
        left, top, wide, tall = self.boxes[member].tolist()
        part = np.s_[top : top + tall, left : left + wide]
        return part, self.labels[part] == int(self.index[member])


@dataclass(frozen=True)
class Row:
    """Pieces in a row at the working size, with what they have in common (see ``FEATURES``)."""

    pieces: Pieces
    members: npt.NDArray[np.int64]
    features: tuple[float, ...]
    hulls: tuple[_Float, ...]

    @property
    def mask(self) -> Mask:
        """bool (height, width), true on the pieces."""
        return np.isin(self.pieces.labels, self.pieces.index[self.members])

    @property
    def letters(self) -> Mask:
        """bool (height, width), true on the pieces with their soft edges and on lesser ones between them."""
        stands = self.pieces.stands
        hull = cv2.convexHull(np.concatenate(self.hulls).astype(np.int32))
        area = np.zeros(stands.shape, np.uint8)
        cv2.fillPoly(area, [hull.reshape(-1, 1, 2)], 1)
        area = cv2.dilate(area, np.ones((9, 9), np.uint8))
        faint = max(4.0, 0.3 * float(np.median(self.pieces.contrast[self.members])))
        marks = ((stands >= faint) & (area > 0)) | self.mask
        return np.asarray(cv2.dilate(marks.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)


def find_rows(small: Picture) -> list[Row]:
    """Return every row of pieces that may be text in a picture of about ``SIDE`` pixels."""
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (_STROKE, _STROKE))
    rows: list[Row] = []
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        stands = cv2.morphologyEx(gray, operation, kernel)
        for level in _LEVELS:
            pieces = _pieces(stands, level)
            if pieces is not None:
                rows += _rows(small, pieces, level)
    return rows


def _pieces(stands: Picture, level: int) -> Pieces | None:
    """Return the pieces of the size of letters; None if they are too few for a row, or so many that it is texture."""
    marks = _at_least(stands, level)
    if not FEWEST * _SMALLEST <= cv2.countNonZero(marks) <= _DENSE * marks.size:
        return None
    count, labels, stats = parts_of(marks)
    height, width = stands.shape
    index = 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= _SMALLEST)  # 0 is what does not stand out
    left, top, wide, tall, area = np.ascontiguousarray(stats[index].T)
    large = np.maximum(wide, tall)
    fits = (large >= 5) & (large <= 0.2 * max(height, width))
    fits &= (left > 0) & (top > 0) & (left + wide < width) & (top + tall < height)
    if not FEWEST <= np.count_nonzero(fits) <= _PIECES:
        return None
    index, area, boxes = index[fits], area[fits], stats[index[fits], :4]
    left, top, wide, tall = boxes.T
    standing = np.flatnonzero(marks.view(np.bool_))
    strength = np.bincount(labels.ravel()[standing], stands.ravel()[standing], minlength=count)[index] / area
    size = np.hypot(wide, tall).astype(np.float32)
    aspect = np.log(wide / tall).astype(np.float32)
    centre = np.stack([left + wide / 2, top + tall / 2], 1).astype(np.float32)
    return Pieces(labels, index, boxes, area, centre, size, aspect, strength.astype(np.float32), stands)


def _at_least(stands: Picture, level: int) -> Picture:
    """Return 1 where something stands out at least so much, uint8."""
    return np.asarray(cv2.threshold(stands, level - 1, 1, cv2.THRESH_BINARY)[1])


def _strokes(pieces: Pieces, members: npt.NDArray[np.int64], rim: Picture) -> _Float:
    """Return how thick the strokes of the pieces of a row are, in pixels, float32 (n,).

    Args:
        rim: 1 on the pixels of pieces that lie beside what is no piece, uint8 (height, width).
    """
    stroke = np.zeros(len(members), np.float32)
    for k, member in enumerate(members.tolist()):
        part, own = pieces.own(member)
        stroke[k] = 2 * float(pieces.area[member]) / max(1, cv2.countNonZero(own.view(np.uint8) & rim[part]))
    return stroke


def _hulls(pieces: Pieces, members: npt.NDArray[np.int64]) -> tuple[tuple[_Float, ...], _Float]:
    """Return the convex hulls of the pieces of a row, float32 (m, 2) each, and how much of them is filled."""
    hulls: list[_Float] = []
    solid = np.zeros(len(members), np.float32)
    for k, member in enumerate(members.tolist()):
        hull = cv2.convexHull(cv2.findNonZero(pieces.own(member)[1].view(np.uint8))).reshape(-1, 2)
        solid[k] = float(pieces.area[member]) / max(1.0, cv2.contourArea(hull) + 1)
        hulls.append((hull + pieces.boxes[member, :2]).astype(np.float32))
    return tuple(hulls), np.minimum(solid, 1.5)


def _colours(small: Picture, pieces: Pieces, members: npt.NDArray[np.int64]) -> _Float:
    """Return the mean colour of each piece of a row, float32 (n, 3)."""
    found = (pieces.own(member) for member in members.tolist())
    return np.array([cv2.mean(small[part], own.view(np.uint8))[:3] for part, own in found], np.float32)


def _rows(small: Picture, pieces: Pieces, level: int) -> list[Row]:
    """Join pieces into rows, the longest first; each piece is in one row at most."""
    x, y = np.ascontiguousarray(pieces.centre.T)
    squared = np.square(x[:, None] - x) + np.square(y[:, None] - y)
    reach = 1.69 * np.square(pieces.size)
    first, second = np.nonzero(np.triu(squared < np.maximum(reach[:, None], reach), 1))
    larger = np.maximum(pieces.size[first], pieces.size[second])
    smaller = np.minimum(pieces.size[first], pieces.size[second])
    apart = squared[first, second]
    near = (smaller > 0.45 * larger) & (apart > 0)
    first, second, apart, larger = first[near], second[near], apart[near], larger[near]
    order = np.argsort(apart / np.square(larger), kind="stable")[:_PAIRS]
    contrasts = np.sort(np.stack([pieces.contrast[first[order]], pieces.contrast[second[order]]]), axis=0)
    order = order[contrasts[1] < 2.34 * contrasts[0]]  # _in_line refuses the others
    found: list[npt.NDArray[np.int64]] = []
    together: set[tuple[int, int]] = set()
    first, second = first[order], second[order]
    for pair, members in zip(zip(first.tolist(), second.tolist()), _in_line(pieces, first, second)):
        if pair not in together:
            found.append(members)
            together.update((min(each), max(each)) for each in itertools.pairwise(members.tolist()))
    used = np.zeros(len(pieces), dtype=bool)
    rows = []
    members_all = sorted((m for m in found if len(m) >= FEWEST), key=lambda m: -len(m))
    for members in members_all:
        if used[members].any():
            continue
        used[members] = True
        rows.append(members)
    if not rows:
        return []
    share = float(used.sum() / len(pieces))
    marks = _at_least(pieces.stands, level)
    rim = np.asarray(cv2.subtract(marks, cv2.erode(marks, np.ones((3, 3), np.uint8))))
    judged = (_judged(small, pieces, members, rim, share, level) for members in rows)
    return [row for row in judged if row]


def _in_line(
    pieces: Pieces, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int64]]:
    """Return for each of many pairs the pieces in line with the two, at even distances, in order; none if they differ.

    Args:
        pieces: all that stand out.
        first: one piece of each pair, int64 (n,).
        second: the other.
    """
    pairs, steps = np.arange(len(first)), pieces.centre[second] - pieces.centre[first]
    along = steps / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-6)
    middle = (pieces.centre[first] + pieces.centre[second]) / 2
    place = along @ pieces.centre.T - (along * middle).sum(1, keepdims=True)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    offset = np.abs(normal @ pieces.centre.T - (normal * middle).sum(1, keepdims=True))
    typical = ((pieces.size[first] + pieces.size[second]) / 2)[:, None]
    contrast = ((pieces.contrast[first] + pieces.contrast[second]) / 2)[:, None]
    fits = (offset < 0.3 * typical) & (pieces.size > 0.4 * typical) & (pieces.size < 1.8 * typical)
    fits &= (pieces.contrast > 0.6 * contrast) & (pieces.contrast < 1.6 * contrast)
    fits &= (fits[pairs, first] & fits[pairs, second])[:, None]
    owner, member = np.nonzero(fits)
    order = np.lexsort((place[owner, member], owner))
    owner, member = owner[order], member[order]
    gap = np.abs(np.diff(place[owner, member])) > 1.9 * typical[owner[1:], 0]
    begin = np.concatenate([[True], gap | (np.diff(owner) != 0)])[: len(owner)]
    stretch = np.cumsum(begin) - 1
    bounds = np.append(np.flatnonzero(begin), len(owner))
    own = np.flatnonzero(member == first[owner])  # one place for each pair that fits
    runs = dict(zip(owner[own].tolist(), stretch[own].tolist()))
    none = np.zeros(0, dtype=np.int64)
    return [member[bounds[run] : bounds[run + 1]] if (run := runs.get(i)) is not None else none for i in pairs.tolist()]


def _judged(
    small: Picture, pieces: Pieces, members: npt.NDArray[np.int64], rim: Picture, share: float, level: int
) -> Row | None:
    """Measure a row, what takes little time first; None as soon as something is as it never is in text."""
    centre, size = pieces.centre[members], pieces.size[members]
    typical = _median(size)
    mean = centre.mean(0)
    middle = centre - mean
    along, normal = _axes(middle)
    across = middle @ normal
    offset = math.sqrt(float(across @ across) / len(across)) / typical
    gaps, aspects = _spread(np.diff(np.sort(middle @ along))), _deviation(pieces.aspect[members])
    if offset > _CROOKED or gaps > _RAGGED or _is_pattern(aspects, gaps):
        return None
    stroke = _strokes(pieces, members, rim)
    uneven = _spread(stroke)
    if uneven > _UNEVEN:
        return None
    hulls, solidity = _hulls(pieces, members)
    heights = (np.concatenate(hulls) - mean) @ normal
    starts = np.cumsum([0, *(len(hull) for hull in hulls[:-1])])
    sides = (np.minimum.reduceat(heights, starts), np.maximum.reduceat(heights, starts))
    low, high = sorted(_median(np.abs(side - _median(side))) / typical for side in sides)
    if high > _CROOKED or float(solidity.mean()) < _HOLLOW:
        return None
    contrast = pieces.contrast[members]
    ground = _ground(pieces, members, hulls) / max(float(contrast.mean()), 1.0)
    features = (
        math.log(len(members)), offset, gaps, _spread(contrast), float(solidity.mean()), share,
        _median(stroke) / typical, uneven, aspects, _spread(size), math.log(level), low, high, ground,
        float(_colours(small, pieces, members).std(0).mean()),
    )  # fmt: skip
    return Row(pieces, members, features, hulls)


def _axes(middle: _Float) -> tuple[_Float, _Float]:
    """Return the unit vectors along and across the line that lies nearest to points round 0, float32 (2,) each."""
    x, y = middle[:, 0], middle[:, 1]
    turn = 0.5 * math.atan2(2 * float(x @ y), float(x @ x) - float(y @ y))
    c, s = math.cos(turn), math.sin(turn)
    return np.array([c, s], np.float32), np.array([-s, c], np.float32)


def _median(values: _Float) -> float:
    """Return the median of a few numbers; numpy's takes ten times as long on them."""
    ordered: list[float] = sorted(values.tolist())
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _deviation(values: _Float) -> float:
    """Return the standard deviation of a few numbers; numpy's takes several times as long on them."""
    away = values - values.sum() / len(values)
    return math.sqrt(float(away @ away) / len(values))


def _spread(values: _Float) -> float:
    return _deviation(values) / max(float(values.sum()) / len(values), 1e-6)


def _ground(pieces: Pieces, members: npt.NDArray[np.int64], outlines: tuple[_Float, ...]) -> float:
    """Return how much the gaps between the pieces of a row stand out by themselves; little for text."""
    hulls = np.concatenate(outlines).astype(np.int32)
    left, top = hulls.min(0)
    right, bottom = hulls.max(0) + 1
    part = np.s_[top:bottom, left:right]
    area = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(area, [cv2.convexHull(hulls - np.array([left, top])).reshape(-1, 1, 2)], 1)
    labels = pieces.labels[part]
    chosen = np.zeros(int(labels.max()) + 1, np.uint8)
    chosen[pieces.index[members]] = 1
    gaps = cv2.subtract(area, cv2.dilate(chosen[labels], np.ones((3, 3), np.uint8)))
    return float(cv2.mean(pieces.stands[part], gaps)[0])


def _is_pattern(aspects: float, gaps: float) -> bool:
    """Return whether pieces are of one shape at equal distances: a string across stripes, the windings of a grip."""
    return aspects < _ONE_SHAPE and gaps < _EQUAL_GAPS


def likelihood(features: tuple[float, ...]) -> float:
    """Return how sure it is that a row with these features is text, 0 to 1; 0.5 is where false alarms become rare."""
    named = dict(zip(FEATURES, features))
    if _is_pattern(named["aspects"], named["gaps"]):
        return 0.0
    scaled = np.clip((np.array(features) - MEANS) / SPREADS, -4, 4)
    pairs = np.outer(scaled, scaled)[np.triu_indices(len(scaled))]
    logit = float(np.concatenate([scaled, pairs, [1.0]]) @ np.array(WEIGHTS)) - SURE
    return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))
