"""Find pictures that are the same but for size, a slight crop, compression or a mirror, among thousands.

A hash is the picture in miniature (``measures.perceptual_hash``). Candidates are pairs whose miniatures correlate;
each picture's nearest are then laid over each other, shifted and scaled a little, and compared in colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.picture import Picture

_Float = npt.NDArray[np.float32]

_CANDIDATE = 0.80  # correlation of blurred miniatures from which on a pair is looked at closely
_NEAREST = 24  # candidates for each picture; a group needs only links, not all its pairs
_BLOCK = 512  # rows that are compared at once
_MARGIN = 8  # a crop may take this part of a miniature's side away, on each side
_COARSE_SCALES = (1.0, 0.91, 0.82)
_SCALES = (1.0, 0.98, 0.96, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79)
_SAME = 0.925  # correlation of the overlaid miniatures; different pictures of one design reach 0.90
_PERHAPS = 0.84  # the same at half the size, from which on it is worth the finer look
_LEVELS = 30.0  # mean difference in a channel that saving again or a filter may make
_FLAT = 2.0  # levels of standard deviation under which a miniature shows nothing to compare


def groups(hashes: Sequence[Picture]) -> list[tuple[int, ...]]:
    """Return the groups of pictures that are the same or nearly so, each of two or more indices in order.

    Args:
        hashes: perceptual hashes, uint8 (32, 32, 3).
    """
    pairs = [(a, b) for a, b in _candidates(hashes, hashes) if same(hashes[a], hashes[b])]
    return _joined(pairs)


def mirrored(hashes: Sequence[Picture]) -> list[tuple[int, int]]:
    """Return the pairs of which one is the mirror image of the other; a symmetric picture is not its own mirror.

    Args:
        hashes: as for ``groups``.
    """
    flipped = [np.ascontiguousarray(each[:, ::-1]) for each in hashes]
    pairs = []
    for a, b in _candidates(hashes, flipped):
        if same(hashes[a], flipped[b]) and not same(hashes[a], hashes[b]):
            pairs.append((a, b))
    return pairs


def same(one: Picture, other: Picture) -> bool:
    """Return whether two hashes are of the same picture, but for a slight crop, its size and how it was saved."""
    means = one.reshape(-1, 3).mean(axis=0) - other.reshape(-1, 3).mean(axis=0)
    if np.abs(means).max() > _LEVELS:
        return False
    if min(float(one.std()), float(other.std())) < _FLAT:
        return bool(np.abs(one.astype(np.int16) - other).max() <= _FLAT)
    grey = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (one, other)]
    fine = [cv2.resize(each, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for each in grey]
    for whole, part in ((0, 1), (1, 0)):
        for first in _COARSE_SCALES:
            if _overlaid(grey[whole], grey[part], first) >= _PERHAPS:
                near = (scale for scale in _SCALES if abs(scale - first) < 0.06)
                if any(_overlaid(fine[whole], fine[part], scale) >= _SAME for scale in near):
                    return True
    return False


def _overlaid(whole: npt.NDArray[np.uint8], part: npt.NDArray[np.uint8], scale: float) -> float:
    """Return the correlation of ``part``'s middle, scaled, with ``whole`` where it fits best at any slight shift."""
    side = len(whole)
    margin = side // _MARGIN
    middle = part[margin : side - margin, margin : side - margin]
    if scale != 1:
        size = round(len(middle) * scale)
        middle = cv2.resize(middle, (size, size), interpolation=cv2.INTER_AREA)
    return float(cv2.matchTemplate(whole, middle, cv2.TM_CCOEFF_NORMED).max())


def _candidates(ones: Sequence[Picture], others: Sequence[Picture]) -> list[tuple[int, int]]:
    """Return the pairs of different indices, the lower first, whose blurred miniatures correlate, in order.

    Each of ``ones`` brings at most its nearest few.
    """
    return sorted(set(_nearest(ones, others)))


def _nearest(ones: Sequence[Picture], others: Sequence[Picture]) -> Iterator[tuple[int, int]]:
    if not len(ones):
        return
    left, right = _vectors(ones), _vectors(others)
    for start in range(0, len(left), _BLOCK):
        alike = left[start : start + _BLOCK] @ right.T
        rows = np.arange(len(alike))
        alike[rows, rows + start] = -1  # itself
        if alike.shape[1] > _NEAREST:
            nearest = np.argpartition(-alike, _NEAREST, axis=1)[:, :_NEAREST]
        else:
            nearest = np.broadcast_to(np.arange(alike.shape[1]), alike.shape)
        for row, columns in enumerate(nearest):
            for column in columns:
                if alike[row, column] >= _CANDIDATE:
                    a, b = row + start, int(column)
                    yield (a, b) if a < b else (b, a)


def _vectors(hashes: Sequence[Picture]) -> _Float:
    """Return unit vectors, float32 (n, 192): 8 x 8 colours about their mean, so that a dot product is a correlation."""
    small = [cv2.resize(cv2.GaussianBlur(each, (0, 0), 1.5), (8, 8), interpolation=cv2.INTER_AREA) for each in hashes]
    vectors = np.stack(small).reshape(len(small), -1).astype(np.float32)
    vectors -= vectors.reshape(len(small), -1, 3).mean(axis=1, keepdims=True).repeat(64, 1).reshape(vectors.shape)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    flat = length[:, 0] < _FLAT * np.sqrt(vectors.shape[1])
    vectors /= np.maximum(length, 1e-6)
    vectors[flat] = 1 / np.sqrt(vectors.shape[1])  # all that show nothing are candidates of each other
    return vectors


def _joined(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Return the connected groups of a graph that is given by its edges."""
    root: dict[int, int] = {}

    def top(index: int) -> int:
        while root.setdefault(index, index) != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    for a, b in pairs:
        low, high = sorted((top(a), top(b)))
        root[high] = low
    groups: dict[int, list[int]] = {}
    for index in sorted(root):
        groups.setdefault(top(index), []).append(index)
    return [tuple(group) for _, group in sorted(groups.items())]
