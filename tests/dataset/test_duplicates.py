"""The same picture is found again after what people and programs do to it; different pictures are not taken for it."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from draw import busy, item
from PIL import Image

from lorasmith.dataset.duplicates import groups, mirrored
from lorasmith.dataset.look import look
from lorasmith.dataset.measures import perceptual_hash
from lorasmith.dataset.picture import Picture

AXES = Path(__file__).parents[3] / "shared" / "data" / "axe"


def jpeg(picture: Picture, quality: int) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream))


def crop(picture: Picture, share: float) -> Picture:
    height, width = picture.shape[:2]
    x, y = int(width * share), int(height * share)
    return np.ascontiguousarray(picture[y // 3 : height - y + y // 3, x // 2 : width - x + x // 2])


CHANGES = {
    "jpeg": lambda p: jpeg(p, 30),
    "smaller": lambda p: cv2.resize(p, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
    "larger": lambda p: cv2.resize(p, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_CUBIC),
    "crop": lambda p: crop(p, 0.06),
    "brighter": lambda p: np.clip(p.astype(np.float32) * 1.1 + 4, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change: str) -> None:
    pictures = [busy(seed) for seed in range(20)]
    copies = [CHANGES[change](picture) for picture in pictures[:10]]
    found = groups([perceptual_hash(p) for p in (*pictures, *copies)])
    assert found == [(i, 20 + i) for i in range(10)]


def test_groups_of_more_than_two_and_flat_pictures() -> None:
    one, other = busy(1), busy(2)
    flat = np.full((64, 64, 3), 255, np.uint8)
    pictures = [one, other, jpeg(one, 40), flat, CHANGES["smaller"](one), flat // 2, flat.copy()]
    assert groups([perceptual_hash(p) for p in pictures]) == [(0, 2, 4), (3, 6)]
    assert groups([]) == []
    assert groups([perceptual_hash(one)]) == []


def test_items_that_differ_in_colour_or_place_are_not_the_same() -> None:
    pictures = [item(0), item(0, ground=(40, 40, 60)), item(0, at=0.25), item(0, at=0.75)]
    assert groups([perceptual_hash(p) for p in pictures]) == []


def test_mirror_images_are_told_apart_from_copies() -> None:
    pictures = [busy(seed) for seed in range(8)]
    pictures.append(jpeg(np.ascontiguousarray(pictures[3][:, ::-1]), 60))
    hashes = [perceptual_hash(p) for p in pictures]
    assert groups(hashes) == []
    assert mirrored(hashes) == [(3, 8)]
    assert mirrored([perceptual_hash(item(0)), perceptual_hash(item(0))]) == [], "symmetric pictures are copies"


@pytest.mark.skipif(not AXES.is_dir(), reason="the real photos are not here")
def test_real_photos_of_one_kind_are_not_duplicates_and_their_copies_are() -> None:
    pictures = [look(path).picture for path in sorted(AXES.glob("*.png"))]
    hashes = [perceptual_hash(p) for p in pictures]
    assert groups(hashes) == []
    assert mirrored(hashes) == []
    copies = [perceptual_hash(CHANGES["crop"](p)) for p in pictures]
    found = groups([*hashes, *copies])
    right = sum(group == (i, len(hashes) + i) for i in range(len(hashes)) for group in found)
    assert right >= 0.85 * len(hashes)
    assert len(found) - right <= 0.05 * len(hashes)


def test_thousands_of_pictures_take_no_quadratic_python() -> None:
    rng = np.random.default_rng(0)
    hashes = list(rng.integers(0, 255, (3000, 8, 8, 3), dtype=np.uint8))
    hashes = [cv2.resize(each, (32, 32), interpolation=cv2.INTER_CUBIC) for each in hashes]
    assert groups([*hashes, hashes[17]]) == [(17, 3000)]
