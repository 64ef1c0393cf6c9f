"""Holes are filled from what is round them, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from lorasmith.dataset.inpaint import METHODS, fill, fill_holes
from lorasmith.starter.renderer import render


def decibels(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    error = np.square(a[where].astype(float) - b[where]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.fixture
def hole() -> np.ndarray:
    mask = np.zeros((96, 96), bool)
    mask[40:46, 12:80] = True
    return mask


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_only_the_holes_change(hole: np.ndarray, method: str) -> None:
    picture = render(3, size=96).image
    damaged = picture.copy()
    damaged[hole] = 255
    result, done = fill_holes(damaged, hole, method)
    assert np.array_equal(result[~hole], picture[~hole])
    assert sum(each.pixels for each in done) == hole.sum()
    assert method in ("auto", done[0].method)


@pytest.mark.parametrize("background", ["gradient", "sand", "wood", "stripes"])
def test_filling_is_much_better_than_the_damage(hole: np.ndarray, background: str) -> None:
    picture = render(21, size=96, backgrounds=(background,)).image
    damaged = picture.copy()
    damaged[hole] = 255
    result, _ = fill_holes(damaged, hole)
    assert decibels(result, picture, hole) > decibels(damaged, picture, hole) + 6


def test_patches_continue_a_texture_that_smooth_filling_cannot() -> None:
    tile = np.zeros((8, 8, 3), np.uint8)
    tile[:4, :4] = tile[4:, 4:] = 230
    picture = np.tile(tile, (12, 12, 1))
    hole = np.zeros((96, 96), bool)
    hole[40:56, 40:56] = True
    damaged = picture.copy()
    damaged[hole] = 99
    result, done = fill_holes(damaged, hole)
    assert done[0].method == "patch"
    assert np.array_equal(result, picture)
    assert decibels(fill(damaged, hole, "telea"), picture, hole) < 15


def test_a_picture_that_is_all_hole_does_not_hang() -> None:
    picture = np.full((24, 24, 3), 7, np.uint8)
    result, _ = fill_holes(picture, np.ones((24, 24), bool))
    assert result.shape == picture.shape
