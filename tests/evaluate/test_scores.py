"""Rates and their intervals."""

from __future__ import annotations

import pytest

from lorasmith.evaluate.scores import Rate, rate


def test_rate_counts() -> None:
    assert rate([True, False, True, True]) == Rate(3, 4)
    assert Rate(3, 4).value == 0.75
    assert Rate(0, 0).value == 0.0
    assert Rate(0, 0).interval() == (0.0, 1.0)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I (method 3).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(hits: int, count: int, low: float, high: float) -> None:
    assert Rate(hits, count).interval() == pytest.approx((low, high), abs=5e-5)


def test_it_says_itself() -> None:
    assert str(Rate(45, 50)) == "90.0 % (79 to 96, n = 50)"
