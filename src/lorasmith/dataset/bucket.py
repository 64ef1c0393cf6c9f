"""Cut pictures to the size that a base is trained at."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from lorasmith.dataset.picture import Picture

_REDUCING_GAP = 3.0  # Pillow's own figure for a fast shrink that is hardly told from the slow one


@dataclass(frozen=True)
class View:
    """One way to look at a picture; ``x`` and ``y`` are 0 at the left and top, 1 at the right and bottom."""

    x: float
    y: float
    flip: bool


def fit(picture: Picture, size: tuple[int, int], *, x: float = 0.5, y: float = 0.5, flip: bool = False) -> Picture:
    """Return the largest part of ``picture`` that has the shape of ``size``, scaled to ``size``.

    Only the part is scaled, so a very long picture costs no more than a square one.

    Args:
        picture: uint8 of shape (height, width, 3).
        size: width and height of the result, in pixels.
        x: where the part lies along the width: 0 left, 0.5 middle, 1 right.
        y: where the part lies along the height: 0 top, 0.5 middle, 1 bottom.
        flip: mirror left and right.

    Returns:
        uint8 of shape (size[1], size[0], 3). Filtered by Lanczos over the area that a new pixel covers.
    """
    height, width = picture.shape[:2]
    scale = min(width / size[0], height / size[1])
    part_width, part_height = min(size[0] * scale, width), min(size[1] * scale, height)
    left, top = (width - part_width) * x, (height - part_height) * y
    box = (left, top, min(left + part_width, width), min(top + part_height, height))
    scaled = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, box, _REDUCING_GAP)
    result = np.array(scaled)
    return np.ascontiguousarray(result[:, ::-1]) if flip else result


def views(crop: Literal["center", "random"], crops: int, flip: bool, seed: int, sha: str) -> list[View]:
    """Return the views of one picture that are encoded and trained on; the same arguments give the same views.

    Args:
        crop: ``center``: the middle, and with ``flip`` its mirror image too; ``random``: ``crops`` random parts,
            spread evenly along both sides, every second one mirrored with ``flip``.
        crops: how many random parts.
        flip: whether mirror images are wanted.
        seed: the run's seed.
        sha: the picture's content hash, so that its views do not depend on the other pictures.
    """
    if crop == "center":
        return [View(0.5, 0.5, mirrored) for mirrored in ((False, True) if flip else (False,))]
    rng = random.Random(f"{seed}:{sha}")
    rows = list(range(crops))
    rng.shuffle(rows)
    odd = rng.random() < 0.5
    return [
        View((i + rng.random()) / crops, (row + rng.random()) / crops, flip and (i % 2 == 1) == odd)
        for i, row in enumerate(rows)
    ]
