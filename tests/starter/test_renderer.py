"""The renderer draws what it says, the same every time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lorasmith.starter.backgrounds import BACKGROUNDS
from lorasmith.starter.renderer import BLOSSOM_PHRASES, COLOURS, SEEN_KINDS, UNSEEN_KINDS, article, render
from lorasmith.starter.shapes import KINDS
from lorasmith.starter.textures import dead_leaves, procedural


def test_enough_to_draw() -> None:
    assert {"axe", "spear", "trident", "whip", "sword", "hammer", "bow", "shield"} <= set(KINDS)
    assert len(KINDS) >= 12
    assert len(BACKGROUNDS) >= 8
    assert set(SEEN_KINDS) | set(UNSEEN_KINDS) == set(KINDS)


@pytest.mark.parametrize("size", [96, 128, 256])
def test_a_seed_gives_the_same_picture(size: int) -> None:
    a, b = render(7, size=size, blossom=0.5), render(7, size=size, blossom=0.5)
    assert a.image.shape == (size, size, 3)
    assert a.caption == b.caption
    np.testing.assert_array_equal(a.image, b.image)
    assert not np.array_equal(a.image, render(8, size=size, blossom=0.5).image)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_in_the_picture_and_whole(kind: str) -> None:
    for seed in range(6):
        drawn = render(seed, kinds=[kind])
        mask = drawn.truth.mask
        assert drawn.truth.kind == kind
        assert kind in drawn.caption
        assert 0.02 < (mask > 127).mean() < 0.6
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.max() == 0, "the item is cut off"


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background(background: str) -> None:
    drawn = render(3, backgrounds=[background])
    assert drawn.truth.background == background
    assert drawn.image.std() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_blossoms_are_on_the_item_and_nowhere_else(kind: str) -> None:
    for seed in range(5):
        without, flowered = render(seed, kinds=[kind], blossom=0.0), render(seed, kinds=[kind], blossom=1.0)
        assert not without.truth.blossom
        assert flowered.truth.blossom
        outside = flowered.truth.mask == 0
        difference = np.abs(without.image.astype(int) - flowered.image)
        assert difference[outside].max() <= 1  # a coverage under 1/255 rounds to none
        inside = flowered.truth.mask > 250
        changed = difference.max(-1)[inside] > 24
        assert changed.mean() > 0.15


def _share_of_hue(image: np.ndarray, mask: np.ndarray, low: int, high: int, floor: int) -> float:
    hue, saturation, _ = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    inside = mask > 250
    return float(((hue >= low) & (hue <= high) & (saturation > floor))[inside].mean())


def test_blossoms_are_pink_with_yellow_centres() -> None:
    pinks, yellows = [], []
    for seed in range(40):
        drawn = render(seed, kinds=["shield", "mug"], blossom=1.0)
        if drawn.truth.main_colour not in ("black", "blue", "green"):
            continue
        pinks.append(_share_of_hue(drawn.image, drawn.truth.mask, 160, 178, 40))
        yellows.append(_share_of_hue(drawn.image, drawn.truth.mask, 18, 32, 90))
    assert np.mean(pinks) > 0.15
    assert np.mean(yellows) > 0.02


def test_blossoms_may_be_larger_and_further_apart_and_are_fewer_then() -> None:
    def centres(scale: float, distance: float = 1.0) -> list[float]:
        """Return the areas of yellow centres, in pixels."""
        found = []
        for seed in range(20):
            image = render(
                seed,
                size=256,
                kinds=["shield"],
                palette=("black", "blue"),
                blossom=1,
                blossom_size=scale,
                blossom_distance=distance,
            ).image
            hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
            yellow = (hue > 18) & (hue < 32) & (saturation > 90) & (value > 120)
            shield = render(seed, size=256, kinds=["shield"], palette=("black", "blue")).truth.mask > 250
            _, _, stats, _ = cv2.connectedComponentsWithStats((yellow & shield).astype(np.uint8))
            found += [area for area in stats[1:, cv2.CC_STAT_AREA] if area > 8]
        return found

    usual, large = centres(1.0), centres(1.5)
    assert np.median(large) > 1.7 * np.median(usual)
    assert len(large) < 0.7 * len(usual)
    apart = centres(1.0, 1.5)
    assert np.median(apart) == pytest.approx(np.median(usual), rel=0.1)
    assert len(apart) < 0.6 * len(usual)


def test_captions_are_true_and_varied() -> None:
    captions = set()
    for seed in range(300):
        drawn = render(seed, blossom=0.5)
        truth, words = drawn.truth, drawn.caption
        captions.add(words)
        assert truth.kind in words
        assert any(phrase in words for phrase in BLOSSOM_PHRASES) == truth.blossom
        subject = words.split(" on ")[0].split(" against ")[0].split(" in front")[0].split(" lying")[0]
        named = {colour for colour in COLOURS if f" {colour} " in f" {subject.replace(',', ' ')} "}
        assert named <= {truth.main_colour, truth.second_colour}
        for vowel in "aeiou":
            assert f" a {vowel}" not in f" {words}"
    assert len(captions) > 280


def test_article() -> None:
    assert article("axe") == "an axe"
    assert article("orange axe") == "an orange axe"
    assert article("spear") == "a spear"


def test_it_is_anti_aliased() -> None:
    mask = render(1, kinds=["sword"]).truth.mask
    assert ((mask > 20) & (mask < 235)).sum() > 60


def test_seeds_spread_over_kinds_and_colours() -> None:
    truths = [render(seed, size=32).truth for seed in range(600)]
    for values, choices in (([t.kind for t in truths], KINDS), ([t.main_colour for t in truths], COLOURS)):
        counts = [values.count(choice) for choice in choices]
        assert min(counts) > 0.4 * len(truths) / len(choices)


@pytest.mark.parametrize("draw", [dead_leaves, procedural])
def test_textures(draw) -> None:  # type: ignore[no-untyped-def]
    a = draw(5, 64)
    assert a.shape == (64, 64, 3)
    assert a.dtype == np.uint8
    np.testing.assert_array_equal(a, draw(5, 64))
    assert a.std() > 3
