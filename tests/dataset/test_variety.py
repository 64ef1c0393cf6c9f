"""Variety is 0 for the same picture again, near 1 for pictures of all kinds, and names the aspect that lacks it."""

from __future__ import annotations

import numpy as np
import pytest
from draw import busy, item

from lorasmith.dataset.measures import measure
from lorasmith.dataset.picture import Picture
from lorasmith.dataset.variety import ASPECTS, Variety, variety


def of(pictures: list[Picture]) -> Variety:
    found = variety([measure(picture) for picture in pictures])
    assert found is not None
    return found


def test_the_same_picture_has_no_variety() -> None:
    found = of([item(0)] * 8)
    assert all(figure == pytest.approx(0, abs=1e-3) for figure in found.figures.values())
    assert set(found.low) == set(ASPECTS)
    assert found.plain == 1


def test_pictures_of_all_kinds_have_much() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        np.clip(busy(seed).astype(np.float32) * rng.uniform(0.4, 1.3) + rng.uniform(-50, 50, 3), 0, 255).astype(
            np.uint8
        )
        for seed in range(20)
    ]
    found = of(pictures)
    assert list(found.low) == []
    assert found.figures["background"] > 0.7
    assert found.plain < 0.3


def test_only_the_aspect_that_lacks_variety_is_low() -> None:
    rng = np.random.default_rng(0)
    grounds = [tuple(int(c) for c in rng.integers(0, 255, 3)) for _ in range(16)]
    same_place = of([item(0, ground=ground) for ground in grounds])  # type: ignore[arg-type]
    assert same_place.figures["background"] > 0.8
    same_ground = of([item(0, at=at) for at in np.linspace(0.15, 0.85, 12)])
    assert same_ground.figures["background"] < 0.05
    assert next(iter(same_ground.low)) == "background"
    assert same_ground.figures["composition"] > 2 * same_place.figures["composition"]


def test_two_kinds_in_equal_parts_are_half() -> None:
    found = of([item(0)] * 20 + [item(0, ground=(20, 25, 30))] * 20)
    assert found.figures["background"] == pytest.approx(0.5, abs=0.03)
    assert found.kinds["background"] == pytest.approx(2, abs=0.15)


def test_the_most_alike_are_those_of_the_crowd() -> None:
    crowd = [item(0)] * 9
    found = of([*crowd, *(item(0, ground=(g, 30, 200 - g)) for g in (10, 90, 180))])
    assert set(found.most_alike["background"]) <= set(range(9))


def test_too_few_pictures_have_no_figure() -> None:
    assert variety([measure(item(0))] * 4) is None
