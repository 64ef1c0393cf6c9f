"""Medians and quantiles of finite numbers, as numpy's, several times as fast on few of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_Float = npt.NDArray[np.float32]


def median(values: _Float, axis: int) -> _Float:
    """Return numpy.median along an axis."""
    count = values.shape[axis]
    if count == 4:
        a, b, c, d = np.moveaxis(values, axis, 0)
        low = np.maximum(np.minimum(a, b), np.minimum(c, d))
        high = np.minimum(np.maximum(a, b), np.maximum(c, d))
        return np.asarray((low + high) / 2, dtype=values.dtype)
    middle = count // 2
    parted = np.partition(values, (middle - 1, middle) if count % 2 == 0 else middle, axis=axis)
    if count % 2:
        return np.asarray(parted.take(middle, axis=axis))
    return np.asarray((parted.take(middle - 1, axis=axis) + parted.take(middle, axis=axis)) / 2, dtype=values.dtype)


def quantile(values: npt.NDArray[Any], share: float) -> float:
    """Return numpy.quantile of all values at one share, 0 to 1."""
    flat = values.ravel()
    place = share * (len(flat) - 1)
    low = int(place)
    high = min(low + 1, len(flat) - 1)
    parted = np.partition(flat, (low, high))
    below = float(parted[low])
    return below + (float(parted[high]) - below) * (place - low)
