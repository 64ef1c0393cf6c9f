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
from lorasmith.dataset.subject import parts_of

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
_Float = npt.NDArray[np.float32]

SIDE = 512  # pixels of the longer side that the search works on
_STROKE = 13  # pixels; wider strokes are not found
_LEVELS = (9, 18, 34)  # of 255, how much a piece stands out
_PIECES = 300  # more than these and it is texture
_PAIRS = 200
_FEWEST = 4  # letters in a row
_SMALLEST = 10  # pixels of a letter
_ONE_SHAPE, _EQUAL_GAPS = 0.12, 0.2  # spread of log(width / height), and of the gaps as a share of their mean
_GRAIN = 3.0  # of 255, what a camera's noise and JPEG add
_PURE, _IMPURE = (0.25, 0.03), (0.4, 0.05)  # of the contrast: between the letters, and within one

FEATURES = (
    "pieces", "offset", "gaps", "contrast", "solidity", "share", "stroke", "stroke_spread", "aspects", "sizes", "level",
    "base", "top", "ground", "hue",
)  # fmt: skip


@dataclass(frozen=True)
class _Pieces:
    """Pieces that stand out at one level; what only rows are judged by is measured of their members alone."""

    labels: npt.NDArray[np.int32]
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
        return part, self.labels[part] == self.index[member]


@dataclass(frozen=True)
class _Letters:
    """What is measured of the pieces of a row."""

    stroke: _Float
    solidity: _Float
    hulls: tuple[_Float, ...]
    colour: _Float


@dataclass(frozen=True)
class Row:
    """Pieces in a row at the working size, with what they have in common (see ``FEATURES``)."""

    pieces: _Pieces
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


def _pieces(stands: Picture, level: int) -> _Pieces | None:
    """Return the pieces of the size of letters; None if they are too few for a row, or so many that it is texture."""
    marks = (stands >= level).astype(np.uint8)
    if cv2.countNonZero(marks) < _FEWEST * _SMALLEST:
        return None
    count, labels, stats = parts_of(marks)
    left, top, wide, tall, area = (stats[:, i] for i in range(5))
    height, width = stands.shape
    large = np.maximum(wide, tall)
    fits = (large >= 5) & (large <= 0.2 * max(height, width)) & (area >= _SMALLEST)
    fits &= (left > 0) & (top > 0) & (left + wide < width) & (top + tall < height)
    fits[0] = False
    index = np.flatnonzero(fits)
    if not _FEWEST <= len(index) <= _PIECES:
        return None
    standing = marks.astype(bool)
    strength = np.bincount(labels[standing], stands[standing], minlength=count)[index] / area[index]
    size = np.hypot(wide, tall)[index].astype(np.float32)
    aspect = np.log(wide / tall)[index].astype(np.float32)
    centre = np.stack([left + wide / 2, top + tall / 2], 1)[index].astype(np.float32)
    contrast = strength.astype(np.float32)
    return _Pieces(labels, index, stats[index, :4], area[index], centre, size, aspect, contrast, stands)


def _letters(small: Picture, pieces: _Pieces, members: npt.NDArray[np.int64], rim: Mask) -> _Letters:
    """Measure the pieces of a row.

    Args:
        rim: true on the pixels of pieces that lie beside what is no piece, bool (height, width).
    """
    count = len(members)
    stroke, solid = np.zeros(count, np.float32), np.zeros(count, np.float32)
    hulls: list[_Float] = []
    colours = np.zeros((count, 3), np.float32)
    for k, member in enumerate(members.tolist()):
        part, own = pieces.own(member)
        area = float(pieces.area[member])
        stroke[k] = 2 * area / max(1, int(np.count_nonzero(own & rim[part])))
        mask = own.view(np.uint8)
        hull = cv2.convexHull(cv2.findNonZero(mask)).reshape(-1, 2)
        solid[k] = area / max(1.0, cv2.contourArea(hull) + 1)
        hulls.append((hull + pieces.boxes[member, :2]).astype(np.float32))
        colours[k] = cv2.mean(small[part], mask)[:3]
    return _Letters(stroke, np.minimum(solid, 1.5), tuple(hulls), colours)


def _rows(small: Picture, pieces: _Pieces, level: int) -> list[Row]:
    """Join pieces into rows, the longest first; each piece is in one row at most."""
    x, y = np.ascontiguousarray(pieces.centre.T)
    squared = np.square(x[:, None] - x) + np.square(y[:, None] - y)
    larger = np.maximum(pieces.size[:, None], pieces.size)
    smaller = np.minimum(pieces.size[:, None], pieces.size)
    near = (squared < 1.69 * np.square(larger)) & (smaller > 0.45 * larger) & (squared > 0)
    first, second = np.nonzero(np.triu(near))
    order = np.argsort(squared[first, second] / np.square(larger[first, second]), kind="stable")[:_PAIRS]
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
    members_all = sorted((m for m in found if len(m) >= _FEWEST), key=lambda m: -len(m))
    for members in members_all:
        if used[members].any():
            continue
        used[members] = True
        rows.append(members)
    if not rows:
        return []
    share = float(used.sum() / len(pieces))
    rim = np.asarray(cv2.distanceTransform((pieces.stands >= level).astype(np.uint8), cv2.DIST_L2, 3)) <= 1.5
    return [_judged(pieces, members, _letters(small, pieces, members, rim), share, level) for members in rows]


def _in_line(
    pieces: _Pieces, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
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


def _judged(pieces: _Pieces, members: npt.NDArray[np.int64], letters: _Letters, share: float, level: int) -> Row:
    centre, size = pieces.centre[members], pieces.size[members]
    typical = _median(size)
    mean = centre.mean(0)
    middle = centre - mean
    _, _, axes = np.linalg.svd(middle, full_matrices=False)
    across = middle @ axes[1]
    offset = math.sqrt(float(across @ across) / len(across)) / typical
    gaps = np.diff(np.sort(middle @ axes[0]))
    heights = (np.concatenate(letters.hulls) - mean) @ axes[1]
    starts = np.cumsum([0, *(len(hull) for hull in letters.hulls[:-1])])
    sides = (np.minimum.reduceat(heights, starts), np.maximum.reduceat(heights, starts))
    low, high = sorted(_median(np.abs(side - _median(side))) / typical for side in sides)
    contrast = pieces.contrast[members]
    ground = _ground(pieces, members, letters.hulls) / max(float(contrast.mean()), 1.0)
    features = (
        math.log(len(members)), offset, _spread(gaps), _spread(contrast),
        float(letters.solidity.mean()), share, _median(letters.stroke) / typical,
        _spread(letters.stroke), float(pieces.aspect[members].std()), _spread(size),
        math.log(level), low, high, ground,
        float(letters.colour.std(0).mean()),
    )  # fmt: skip
    return Row(pieces, members, features, letters.hulls)


def _median(values: _Float) -> float:
    """Return the median of a few numbers; numpy's takes ten times as long on them."""
    ordered: list[float] = sorted(values.tolist())
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _spread(values: _Float) -> float:
    return float(values.std()) / max(float(values.mean()), 1e-6)


def _ground(pieces: _Pieces, members: npt.NDArray[np.int64], outlines: tuple[_Float, ...]) -> float:
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


def likelihood(features: tuple[float, ...]) -> float:
    """Return how sure it is that a row with these features is text, 0 to 1; 0.5 is where false alarms become rare.

    Pieces of one shape at equal distances are no writing: a string across stripes, the windings of a grip.
    """
    named = dict(zip(FEATURES, features))
    if named["aspects"] < _ONE_SHAPE and named["gaps"] < _EQUAL_GAPS:
        return 0.0
    scaled = np.clip((np.array(features) - MEANS) / SPREADS, -4, 4)
    pairs = np.outer(scaled, scaled)[np.triu_indices(len(scaled))]
    logit = float(np.concatenate([scaled, pairs, [1.0]]) @ np.array(WEIGHTS)) - SURE
    return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))


def purity(small: Picture, row: Row) -> float:
    """Return how well the letters' colours are told by one colour laid over what is round them, 0 to 1.

    Letters that were laid over a picture are c = (1 - a) ground + a colour with the same a and colour everywhere, and
    even in themselves; windings of a grip have their own light and shade. See ``overlay_lines`` for the same of lines.
    """
    letters = zip(row.members.tolist(), row.hulls)
    pairs = [pair for each, hull in letters if (pair := _ink_and_ground(small, row.pieces, each, hull))]
    if len(pairs) < _FEWEST - 1:
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


def _ink_and_ground(small: Picture, pieces: _Pieces, member: int, hull: _Float) -> tuple[_Float, _Float, float] | None:
    """Return a piece's colour, that of what is round it, both float32 (3,), and how uneven the piece is."""
    height, width = pieces.stands.shape
    left, top = np.maximum(hull.min(0).astype(int) - 5, 0)
    right, bottom = np.minimum(hull.max(0).astype(int) + 6, (width, height))
    part = np.s_[top:bottom, left:right]
    own, stands = pieces.labels[part] == pieces.index[member], pieces.stands[part]
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
