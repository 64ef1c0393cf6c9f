from __future__ import annotations

import math

import pytest

from lorasmith.train.schedule import multiplier


def test_warm_up_rises_evenly_and_reaches_the_whole_rate() -> None:
    assert [multiplier("cosine", step, 100, 4) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_what_follows_the_warm_up() -> None:
    after = range(5, 13)  # the 8 steps after 4 of warm-up
    assert [multiplier("constant", step, 12, 4) for step in after] == [1.0] * 8
    assert [multiplier("linear", step, 12, 4) for step in after] == pytest.approx([1 - i / 8 for i in range(8)])
    cosine = [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert [multiplier("cosine", step, 12, 4) for step in after] == pytest.approx(cosine)


@pytest.mark.parametrize("warmup", [0, 5, 9])
def test_every_step_has_a_rate_above_zero(warmup: int) -> None:
    for kind in ("constant", "cosine", "linear"):
        assert all(0 < multiplier(kind, step, 5, warmup) <= 1 for step in range(1, 6))  # type: ignore[arg-type]
