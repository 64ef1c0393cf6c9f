"""Buckets: shapes, sizes and where the cut lies."""

from __future__ import annotations

import numpy as np
import pytest

from lorasmith.dataset.shape import bucket_for, cut_to, enlargement, pad_to

ASPECTS = ("1:1", "3:4", "4:3", "16:9")


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", [None, 512])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 777), (64, 64), (1920, 1081), (100, 99)])
def test_a_bucket_is_a_multiple_and_of_the_nearest_aspect(width: int, height: int, size: int | None, pad: bool) -> None:
    aspect, (wide, tall) = bucket_for(width, height, ASPECTS, size, 8, pad=pad)
    assert wide % 8 == tall % 8 == 0

    def off(name: str) -> float:
        across, down = map(int, name.split(":"))
        return abs(np.log(across / down * height / width))

    assert off(aspect) == min(map(off, ASPECTS))
    if size is None:
        assert (enlargement(width, height, (wide, tall), pad=pad) <= 1) or pad
        assert (wide >= width and tall >= height) if pad else (wide <= width and tall <= height)
    else:
        assert 0.85 < wide * tall / size**2 < 1.15


def test_a_cut_lies_round_its_centre_and_stays_inside() -> None:
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, 80:] = 255
    assert cut_to(picture, (40, 40), (100, 20)).min() == 255
    assert cut_to(picture, (40, 40), (20, 20)).max() == 0
    assert cut_to(picture, (40, 40), (500, 20)).min() == 255
    assert cut_to(picture, (20, 20), (20, 20)).shape == (20, 20, 3)


def test_padding_keeps_every_pixel_where_nothing_is_scaled() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    padded = pad_to(picture, (50, 50), (1, 2, 3))
    assert np.array_equal(padded[10:40], picture)
    assert (padded[:10] == (1, 2, 3)).all() and (padded[40:] == (1, 2, 3)).all()
