"""Medians and quantiles are numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from lorasmith.dataset.quantiles import median, quantile


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_median_is_numpys(count: int, axis: int) -> None:
    values = np.random.default_rng(count).normal(size=(count, count, count, 2)).astype(np.float32)
    assert np.array_equal(median(values, axis), np.median(values, axis=axis))
    assert median(values, axis).dtype == np.float32


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1001])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.94, 1.0])
def test_quantile_is_numpys(count: int, share: float) -> None:
    rng = np.random.default_rng(count)
    for values in (rng.normal(size=(count, 3)), rng.integers(0, 256, (count, 3), dtype=np.uint8)[::-1, ::2]):
        assert quantile(values, share) == pytest.approx(np.quantile(values.astype(np.float64), share), abs=1e-12)
