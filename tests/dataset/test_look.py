"""A picture's small copy: its size, whatever the file's, and the same picture in it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from draw import busy, write

from lorasmith.dataset.look import LONGEST, SIDE, look


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(300, 300), (512, 700), (900, 900), (1000, 1000), (1024, 1500), (2300, 2400)])
def test_the_small_copy_is_about_as_large_as_promised(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    height, width = size
    seen = look(write(tmp_path / f"a.{suffix}", busy(1, height, width)))
    short, long = min(seen.picture.shape[:2]), max(seen.picture.shape[:2])
    assert (seen.info.width, seen.info.height) == (width, height)
    assert long <= LONGEST
    assert min(0.9 * SIDE, min(size)) - 1 <= short <= SIDE
    assert short / long == pytest.approx(min(size) / max(size), rel=0.02)


def test_a_very_long_picture_keeps_a_side_to_look_at(tmp_path: Path) -> None:
    short, long = sorted(look(write(tmp_path / "a.png", busy(1, 700, 6000))).picture.shape[:2])
    assert 0.9 * SIDE / 4 <= short < SIDE
    assert long <= LONGEST
    assert long / short == pytest.approx(6000 / 700, rel=0.03)


@pytest.mark.parametrize("side", [600, 1000, 1024, 2000])
def test_it_shows_the_same(tmp_path: Path, side: int) -> None:
    picture = busy(2, side)
    small = look(write(tmp_path / "a.png", picture)).picture
    there = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    here = cv2.resize(small, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(there - here).mean() < 2


def test_transparent_pixels_are_counted_and_laid_on_white(tmp_path: Path) -> None:
    picture = np.dstack([busy(3, 1000), np.full((1000, 1000), 255, np.uint8)])
    picture[:250, :, 3] = 0
    seen = look(write(tmp_path / "a.png", picture))
    assert seen.transparent == pytest.approx(0.25)
    assert (seen.picture[:100] == 255).all()
