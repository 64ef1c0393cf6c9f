"""Exposure is evened out gently: better where it was off, hardly changed where it was right."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lorasmith.dataset import exposure
from lorasmith.dataset.exposure import normalise
from lorasmith.starter.renderer import render

ALL = np.ones((96, 96), bool)


def lightness(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]


def test_a_dark_flat_picture_gets_light_and_contrast() -> None:
    picture = render(5, size=96).image
    dark = (picture * 0.25 + 20).astype(np.uint8)
    better, how = normalise(dark, ALL, 1.0)
    assert lightness(better).std() > 1.3 * lightness(dark).std()
    assert lightness(better).mean() > lightness(dark).mean() + 6
    assert how["gain"] > 1


def test_hues_stay() -> None:
    picture = np.full((96, 96, 3), (90, 40, 30), np.uint8)
    picture[:48] = (40, 60, 100)
    better, _ = normalise(picture, ALL, 1.0)
    for row in (10, 80):
        before, after = (cv2.cvtColor(p[row : row + 1, :1], cv2.COLOR_RGB2LAB)[0, 0, 1:] for p in (picture, better))
        assert np.abs(before.astype(int) - after).max() <= 3


def test_white_around_the_subject_stays_white_and_unclipped() -> None:
    picture = np.full((96, 96, 3), 235, np.uint8)
    picture[30:60, 30:60] = 25
    counted = picture[..., 0] < 100
    better, _ = normalise(picture, counted, 1.0)
    assert 225 <= better[0, 0].mean() < 255


def test_strength_scales_what_is_done() -> None:
    dark = (render(5, size=96).image * 0.3).astype(np.uint8)
    changes = [np.abs(normalise(dark, ALL, s)[0].astype(int) - dark).mean() for s in (0.1, 0.5, 1.0)]
    assert changes == sorted(changes)


def test_black_and_white_that_are_there_already_stay() -> None:
    picture = np.full((96, 96, 3), 255, np.uint8)
    picture[30:60, 30:60] = np.linspace(0, 200, 30, dtype=np.uint8)[:, None, None]
    better, how = normalise(picture, picture[..., 0] < 255, 1.0)
    assert (better[0, 0] == 255).all() and (better[30, 30] == 0).all()
    assert how["gain"] == 1 and how["shift"] == 0


def test_a_large_picture_is_changed_in_bands_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    dark = (render(5, size=96).image * 0.3).astype(np.uint8)
    whole, how = normalise(dark, ALL, 1.0)
    monkeypatch.setattr(exposure, "_BAND", 96 * 48)
    banded, about = normalise(dark, ALL, 1.0)
    assert abs(about["gain"] - how["gain"]) < 0.05  # measured on some of the pixels
    assert np.abs(banded.astype(int) - whole).mean() < 3
