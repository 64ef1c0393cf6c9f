"""Find the one thing that a picture is of, without a model: what the picture's border does not explain.

Photographs of items show background all round. The colours of a ring along the border are taken as the background
(clusters in CIE Lab, as in the boundary prior of Wei, Wen, Zhu and Sun, "Geodesic Saliency Using Background
Priors", ECCV 2012), every pixel is scored by how badly they explain it, and GrabCut (Rother, Kolmogorov and Blake,
SIGGRAPH 2004) draws the edge. A figure of confidence says when to leave the picture alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.picture import fraction
from lorasmith.dataset.quantiles import median, quantile

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint16] | npt.NDArray[np.int32]
_Float = npt.NDArray[np.float32]

_SIDE, _FAST_SIDE = 256, 128  # pixels of the longer side that the search works on, for a mask and for a fast one
_MODELS_SIDE = 64  # pixels of the longer side of the copy that a fast search learns GrabCut's colours from
_HOPELESS = 0.3  # of confidence before GrabCut, below which a fast search leaves it out; what becomes sure has 0.39
_RING = 0.05  # of the shorter side
_CLUSTERS = 8
_SURE = 40.0  # units of colour difference, where 1 is just visible: from here on it is the subject
_DOUBTFUL = (4.5, 11.0)  # from here on it may be; the less, the plainer the border
_EXPLAINED = 0.55  # of that; below it is background
_SMALLEST = 0.004  # of the picture, for a part to count
_PINHOLE = 0.02  # of the subject
_ONE_COLOUR = 2.5  # units of colour difference from the border's median
_FAINT = 1.8  # units of colour difference; before a plain border this bridges a gap ...
_FAINT_AT_FRAME = 4.5  # the same beside the frame, where a bridge has one end only and would follow a shadow
_BRIDGE = 15  # ... of so many pixels


@dataclass(frozen=True)
class Subject:
    """What was found.

    Args:
        mask: bool (height, width), true on the subject.
        box: left, top, right, bottom of the mask in pixels, right and bottom excluded; all 0 if nothing was found.
        confidence: 0 to 1; see ``find_subject``.
    """

    mask: Mask
    box: tuple[int, int, int, int]
    confidence: float


def find_subject(picture: Picture, *, fast: bool = False) -> Subject:
    """Find the subject of a picture of any size.

    Args:
        picture: uint8 RGB (height, width, 3).
        fast: with a mask good enough to tell how many things there are and which side they touch, in a small part
            of the time. Worth something where the confidence is 0.5 or more only.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, (_FAST_SIDE if fast else _SIDE) / max(height, width))
    small_size = max(8, round(width * scale)), max(8, round(height * scale))
    nearly = fraction(picture, 2) if fast and scale <= 0.5 else picture
    small = cv2.resize(nearly, small_size, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.bilateralFilter(lab, 5, 8, 2)
    ring = ring_mask(lab.shape[:2])
    border = lab[ring]
    score = _score(lab, border[::2] if fast else border)
    doubtful = _doubtful(score, ring)
    scaled = score * (_DOUBTFUL[1] / doubtful)
    plain = _is_plain(border)
    if fast and _confidence(scaled, score > doubtful, ring) < _HOPELESS:
        mask = _tidy(score > doubtful, score, plain=plain)
    else:
        mask = _cut(small, score, doubtful, plain=plain, fast=fast)
    soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return subject_of(np.asarray(soft > 0.5), confidence=_confidence(scaled, mask, ring))


def subject_of(mask: Mask, *, confidence: float) -> Subject:
    """Return the subject that a mask marks, bool (height, width)."""
    return Subject(mask, _box(mask), confidence)


def parts_of(mask: Picture) -> tuple[int, Labels, npt.NDArray[np.int32]]:
    """Return how many 8-connected parts a mask has, counting what is no part as one, their labels, and their figures.

    As cv2.connectedComponentsWithStats, but by an algorithm that is faster on one thread, and with labels of 16 bits
    where they suffice, which takes two thirds of the time.
    """
    height, width = mask.shape
    few = ((height + 1) // 2) * ((width + 1) // 2) < 2**16  # no two parts share a block of 2 x 2 pixels
    kind = cv2.CV_16U if few else cv2.CV_32S
    count, labels, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(mask, 8, kind, cv2.CCL_SPAGHETTI)
    return count, np.asarray(labels), np.asarray(stats)


def ring_mask(shape: tuple[int, ...]) -> Mask:
    """Return the ring along the border of a picture of that shape, true on the ring."""
    wide = max(2, round(min(shape[:2]) * _RING))
    ring = np.ones(shape[:2], dtype=bool)
    ring[wide:-wide, wide:-wide] = False
    return ring


def _score(lab: _Float, samples: _Float) -> _Float:
    """Return how badly a border's colours explain each pixel, as a colour difference, float32 (height, width).

    Args:
        lab: float32 (height, width, 3).
        samples: the border's pixels, or some of them, float32 (n, 3).
    """
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 12, 0.5)
    cv2.setRNGSeed(0)
    count = min(_CLUSTERS, len(samples))
    _, labels, centres = cv2.kmeans(samples, count, None, criteria, 1, cv2.KMEANS_PP_CENTERS)
    chosen = np.eye(count, dtype=np.float32)[labels.ravel()]
    sizes = chosen.sum(0)
    kept = np.flatnonzero(sizes >= 0.02 * len(samples))
    centres = centres[kept]
    away = samples - centres[np.minimum(np.searchsorted(kept, labels.ravel()), len(kept) - 1)]
    variances = (chosen.T @ np.square(away))[kept] / sizes[kept, None]
    spreads = np.maximum(np.sqrt(variances), (4.0, 2.0, 2.0)).astype(np.float32)
    weights = np.square(spreads.mean(1, keepdims=True) / spreads)
    # The sum of w (x - c)^2 over the channels, for all pixels and clusters, as one matrix product.
    height, width = lab.shape[:2]
    terms = np.ones((7, height * width), dtype=np.float32)
    terms[:3] = lab.reshape(-1, 3).T
    np.square(terms[:3], out=terms[3:6])
    constant = (weights * np.square(centres)).sum(1, keepdims=True)
    squared = np.concatenate([-2 * weights * centres, weights, constant], axis=1) @ terms
    return np.asarray(np.sqrt(np.maximum(squared.min(0), 0)).reshape(height, width))


def _is_plain(border: _Float) -> bool:
    """Return whether a border is of one colour, but for what the subject or a stray line leaves on it.

    Args:
        border: its pixels, float32 (n, 3).
    """
    away = border - median(border, 0)
    return quantile(np.einsum("nc,nc->n", away, away), 0.9) < _ONE_COLOUR**2


def _doubtful(score: _Float, ring: Mask) -> float:
    """Return from which score on a pixel may be the subject: the less, the better the border explains itself."""
    return float(np.clip(3.0 + 2.5 * quantile(score[ring], 0.95), *_DOUBTFUL))


def _cut(small: Picture, score: _Float, doubtful: float, *, plain: bool, fast: bool) -> Mask:
    """Return the subject's mask: what is badly explained, with its edge where GrabCut puts it.

    What the ring explains well stays background, whatever GrabCut's colour models make of it: it would otherwise
    take every second tile of a chequered floor for the subject.
    """
    marks = np.full(score.shape, cv2.GC_PR_BGD, dtype=np.uint8)
    marks[score > doubtful] = cv2.GC_PR_FGD
    marks[score > _SURE] = cv2.GC_FGD
    marks[score < _EXPLAINED * doubtful] = cv2.GC_BGD
    if (marks & 1).sum() < 16 or (marks & 1).all():
        return np.zeros(score.shape, dtype=bool)
    if (marks & 2).any():  # cv2.GC_PR_BGD or cv2.GC_PR_FGD
        _grab(small, marks, fast=fast)
    return _tidy((marks & 1).astype(bool), score, plain=plain)


def _grab(small: Picture, marks: Picture, *, fast: bool) -> None:
    """Settle by GrabCut what ``marks`` has as probable, in place.

    Most of its time goes into learning its colour models; a fast one learns them from a smaller copy.
    """
    ground, thing = np.zeros((1, 65)), np.zeros((1, 65))
    if fast:
        height, width = marks.shape
        scale = min(1.0, _MODELS_SIDE / max(height, width))
        size = max(8, round(width * scale)), max(8, round(height * scale))
        few = np.array(cv2.resize(marks, size, interpolation=cv2.INTER_NEAREST))
        if 16 <= (few & 1).sum() <= few.size - 16:
            mini = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
            cv2.grabCut(mini, few, None, ground, thing, 2, cv2.GC_INIT_WITH_MASK)
            part = _where_in_doubt(marks)
            inner = np.ascontiguousarray(marks[part])
            cv2.grabCut(np.ascontiguousarray(small[part]), inner, None, ground, thing, 1, cv2.GC_EVAL_FREEZE_MODEL)
            marks[part] = inner
            return
    cv2.grabCut(small, marks, None, ground, thing, 2, cv2.GC_INIT_WITH_MASK)


def _where_in_doubt(marks: Picture) -> tuple[slice, slice]:
    """Return the part of a picture that holds all that is not settled, with the pixels next to it."""
    left, top, right, bottom = _box((marks & 2) > 0)
    return np.s_[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1]


def _tidy(mask: Mask, score: _Float, *, plain: bool) -> Mask:
    """Drop specks and hairs, fill pinholes; before a plain border trust faint parts more, and bridge gaps by them."""
    mask = mask & ~_hairs(mask)
    if plain:
        near = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((_BRIDGE, _BRIDGE), np.uint8))
        inner = np.s_[_BRIDGE // 2 : -(_BRIDGE // 2)]
        faintest = np.full(score.shape, _FAINT_AT_FRAME, dtype=np.float32)
        faintest[inner, inner] = _FAINT
        mask = mask | ((near > 0) & (score > faintest))
    count, labels, stats = parts_of(mask.astype(np.uint8))
    if count < 2:
        return mask
    weights = np.bincount(labels.ravel(), score.ravel())
    weights[0] = 0
    share, area = (0.01, _SMALLEST / 6) if plain else (0.08, _SMALLEST)
    keep = np.flatnonzero((weights > share * weights.max()) & (stats[:, cv2.CC_STAT_AREA] > area * mask.size))
    return _without_pinholes(np.isin(labels, keep[keep > 0]))


def _without_pinholes(mask: Mask) -> Mask:
    """Fill holes so small that they are a dark spot or a highlight on the subject rather than a view through it."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:count, cv2.CC_STAT_AREA] < _PINHOLE * mask.sum()
    small[0] = False
    return np.asarray(mask | small[labels], dtype=bool)


def _hairs(mask: Mask) -> Mask:
    """Return what is up to 2 pixels thin and runs to the border: the blended edges of stripes and tiles."""
    open_ = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    thin = mask & (open_ == 0)
    count, labels = cv2.connectedComponents(thin.astype(np.uint8), connectivity=8)
    inner = np.zeros(mask.shape, dtype=bool)
    inner[2:-2, 2:-2] = True
    reaching = np.zeros(count, dtype=bool)
    reaching[labels[~inner]] = True
    reaching[0] = False
    return np.asarray(reaching[labels], dtype=bool)


def _box(mask: Mask) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _confidence(score: _Float, mask: Mask, ring: Mask) -> float:
    """Judge a mask by what told wrong ones apart on drawn pictures.

    Scores are scaled to a busy border's. Its faint tenth has to stand out, little beside it may be half explained, and
    it must be neither a speck, nor nearly everything, nor run all along the border.
    """
    size = np.count_nonzero(mask)
    if size in (0, mask.size):
        return 0.0
    strength = _share((quantile(score[mask], 0.1) - 6) / 12)
    doubtful = np.count_nonzero((score > 6) & (score < 14) & ~mask)
    area, along = size / mask.size, np.count_nonzero(mask & ring) / np.count_nonzero(ring)
    plausible = _share(area / 0.01) * _share((0.9 - area) / 0.2) * _share((0.7 - along) / 0.3)
    return strength * plausible / (1 + 2 * doubtful / size)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
