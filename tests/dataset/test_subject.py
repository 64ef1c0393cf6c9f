"""The subject is found on drawn pictures, whose truth is known, and doubt is said where there is none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lorasmith.dataset.subject import find_subject, parts_of, subject_of
from lorasmith.starter.renderer import render

EASY = ("plain", "gradient", "sand", "sky", "wood", "grass")


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def test_drawn_items_are_found() -> None:
    found = []
    for seed in range(16):
        drawn = render(7000 + seed, size=192, backgrounds=EASY)
        subject = find_subject(drawn.image)
        found.append(overlap(subject.mask, drawn.truth.mask > 127))
        assert subject.mask.shape == (192, 192)
    assert np.mean(found) > 0.85


def test_the_fast_way_finds_them_too() -> None:
    pairs = []
    for seed in range(12):
        drawn = render(7100 + seed, size=256)
        fast, slow = find_subject(drawn.image, fast=True), find_subject(drawn.image)
        truth = drawn.truth.mask > 127
        assert fast.mask.shape == truth.shape
        pairs.append((overlap(fast.mask, truth), overlap(slow.mask, truth)))
    fast_mean, slow_mean = np.mean(pairs, axis=0)
    assert fast_mean > slow_mean - 0.04


def test_parts_are_those_of_the_usual_way() -> None:
    mask = (np.random.default_rng(0).random((60, 80)) < 0.4).astype(np.uint8)
    count, labels, stats = parts_of(mask)
    usual, theirs, figures, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    assert count == usual == len(set(zip(labels.ravel().tolist(), theirs.ravel().tolist())))
    assert sorted(stats.tolist()) == sorted(figures.tolist())


def test_thin_items_are_not_worn_away() -> None:
    for seed in range(3):
        drawn = render(8000 + seed, size=256, kinds=("whip", "spear"), backgrounds=("plain", "sand"))
        truth = drawn.truth.mask > 127
        assert (find_subject(drawn.image).mask & truth).sum() > 0.8 * truth.sum()


def test_the_box_is_that_of_the_mask() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:15, 10:20] = mask[20:35, 30:50] = True
    subject = subject_of(mask, confidence=0.5)
    assert (subject.box, subject.confidence) == ((10, 5, 50, 35), 0.5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 64), (10, 10)])
def test_nothing_to_find_is_no_subject(shape: tuple[int, int]) -> None:
    subject = find_subject(np.full((*shape, 3), 128, np.uint8))
    assert subject.confidence == 0
    assert subject.box == (0, 0, 0, 0)


def test_noise_is_no_subject() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    assert find_subject(picture).confidence < 0.5


def test_the_same_picture_gives_the_same_mask() -> None:
    drawn = render(7, size=160)
    first, second = find_subject(drawn.image), find_subject(drawn.image.copy())
    assert np.array_equal(first.mask, second.mask)
    assert first.confidence == second.confidence
