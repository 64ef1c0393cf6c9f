"""Profiles across many lines at once: as the slow ways give them, and nothing that would be found is passed over."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from draw import busy, item

from lorasmith.dataset import overlay_lines
from lorasmith.dataset.overlay_profile import peaks, promising, straight
from lorasmith.dataset.overlays import find_lines
from lorasmith.dataset.picture import Picture


def with_line(picture: Picture, seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    side = len(picture)
    ends = rng.integers(0, side, (2, 2))
    ends[1] = (ends[0] + side * 2 // 3) % side
    marked = picture.copy()
    colour = tuple(int(c) for c in rng.choice([0, 255], 3))
    cv2.line(marked, ends[0].tolist(), ends[1].tolist(), colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    return marked


def test_a_straight_line_is_fitted_as_polyfit_does_and_outliers_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    place = np.linspace(0, 1, 9)
    shift = rng.normal(0, 0.1, (6, 9)) + rng.normal(0, 2, (6, 1)) * place + rng.normal(0, 2, (6, 1))
    slope, base = straight(place, shift)
    for i in range(6):
        assert np.allclose((slope[i, 0], base[i, 0]), np.polyfit(place, shift[i], 1))
    shift[:, 4] += 5
    there, where = straight(place, shift)
    assert np.allclose(there * place + where, slope * place + base, atol=0.2)


def test_the_peak_of_a_line_is_where_it_was_drawn() -> None:
    for place in (-3, 0, 2):
        profile = np.full((1, 17, 3), 90, np.float32)
        profile[0, 8 + place] = 200
        assert peaks(profile)[0] == pytest.approx(place, abs=0.05)


@pytest.mark.parametrize("seed", range(12))
def test_leaving_early_finds_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = with_line(item(seed, 400) if seed % 2 else busy(seed, 400), seed)
    quick = [(line.box, line.confidence) for line in find_lines(picture, 0.5)]
    monkeypatch.setattr(overlay_lines, "_worth_following", lambda *_: True)
    assert quick == [(line.box, line.confidence) for line in find_lines(picture, 0.5)]
    assert all(confidence >= 0.5 for _, confidence in quick)


def test_a_clean_line_is_promising_and_what_is_none_is_not() -> None:
    picture = np.full((200, 200, 3), 120, np.uint8)
    picture[:, 142:158] = 30
    cv2.line(picture, (50, 20), (50, 180), (255, 255, 255), 2)
    seeds = [(np.array([x, 30], np.float32), np.array([x, 170], np.float32)) for x in (50, 150, 100)]
    assert promising(picture, seeds).tolist() == [True, False, False]
    assert promising(picture, []).tolist() == []
