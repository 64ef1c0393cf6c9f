"""Pictures with and without a fault, drawn for the tests of ``check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from lorasmith.dataset.picture import Picture


def busy(seed: int, side: int = 256, width: int | None = None) -> Picture:
    """Return a sharp picture full of shapes, another for every seed."""
    rng = np.random.default_rng(seed)
    wide = width or side
    colours = rng.integers(40, 215, (6, 6, 3), dtype=np.uint8)
    canvas = cv2.resize(colours, (wide, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(24):
        colour = tuple(int(c) for c in rng.integers(20, 235, 3))
        centre = int(rng.integers(0, wide)), int(rng.integers(0, side))
        size = int(rng.integers(side // 24, side // 6)), int(rng.integers(side // 24, side // 6))
        if rng.random() < 0.5:
            cv2.ellipse(canvas, centre, size, float(rng.integers(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(canvas, centre, (centre[0] + size[0], centre[1] + size[1]), colour, -1)
    return np.ascontiguousarray(canvas)


def item(seed: int = 0, side: int = 256, ground: tuple[int, int, int] = (225, 228, 230), *, at: float = 0.5) -> Picture:
    """Return a hammer on a plain background, whole, its middle at the share ``at`` of the width."""
    rng = np.random.default_rng(seed)
    canvas = np.full((side, side, 3), ground, dtype=np.uint8)
    x, thick = int(side * at), side // 16
    wood, steel = tuple(int(c) for c in rng.integers(60, 150, 3)), (70, 75, 90)
    cv2.rectangle(canvas, (x - thick // 2, side // 4), (x + thick // 2, side * 3 // 4), wood, -1)
    cv2.rectangle(canvas, (x - 2 * thick, side // 5), (x + 2 * thick, side // 5 + 2 * thick), steel, -1)
    return canvas


def two_items(seed: int = 0) -> Picture:
    """Return two hammers side by side."""
    left, right = item(seed, at=0.25), item(seed, at=0.75)
    middle = left.shape[1] // 2
    return np.ascontiguousarray(np.concatenate([left[:, :middle], right[:, middle:]], axis=1))


def blurred(picture: Picture, sigma: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma))


def write(path: Path, picture: Picture, **options: object) -> Path:
    """Save a picture under any name whose suffix Pillow knows."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)  # type: ignore[arg-type]
    return path


Draw = Callable[[], Picture]
