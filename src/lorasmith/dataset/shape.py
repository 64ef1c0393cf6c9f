"""Bring pictures to the shapes of a list of buckets, by cutting or by adding a border."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.bucket import fit

Picture = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


def bucket_for(
    width: int, height: int, aspects: Sequence[str], size: int | None, multiple: int, *, pad: bool
) -> tuple[str, tuple[int, int]]:
    """Return the aspect nearest to a picture's, and the width and height of its bucket in pixels.

    Args:
        width: the picture's.
        height: the picture's.
        aspects: width to height, as ``3:4``.
        size: a bucket has about ``size * size`` pixels; None: as large as the picture, without enlarging it.
        multiple: both sides are multiples of it.
        pad: whether the picture will lie inside the bucket rather than cover it.
    """

    def ratio(aspect: str) -> float:
        across, down = aspect.split(":")
        return int(across) / int(down)

    aspect = min(aspects, key=lambda a: (abs(math.log(ratio(a) * height / width)), aspects.index(a)))
    wanted = ratio(aspect)
    if size is not None:
        wide, tall = size * math.sqrt(wanted), size / math.sqrt(wanted)
        return aspect, (_round(wide, multiple), _round(tall, multiple))
    larger = max if pad else min
    wide = larger(width, height * wanted)
    step = math.ceil if pad else math.floor
    return aspect, (
        max(multiple, step(round(wide / multiple, 6)) * multiple),
        max(multiple, step(round(wide / wanted / multiple, 6)) * multiple),
    )


def _round(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)


def enlargement(width: int, height: int, bucket: tuple[int, int], *, pad: bool) -> float:
    """Return how many times a picture is enlarged to lie in a bucket, or with ``pad`` False to cover it."""
    return (min if pad else max)(bucket[0] / width, bucket[1] / height)


def cut_to(picture: Picture, bucket: tuple[int, int], centre: tuple[float, float]) -> Picture:
    """Return the largest part of a picture that has a bucket's shape, as near round ``centre`` as can be, scaled.

    Args:
        picture: uint8 (height, width, 3).
        bucket: width and height in pixels.
        centre: x and y in pixels.
    """
    height, width = picture.shape[:2]
    scale = min(width / bucket[0], height / bucket[1])
    places = []
    for middle, whole, part in ((centre[0], width, bucket[0] * scale), (centre[1], height, bucket[1] * scale)):
        slack = whole - part
        places.append(min(1.0, max(0.0, (middle - part / 2) / slack)) if slack > 1e-6 else 0.5)
    return fit(picture, bucket, x=places[0], y=places[1])


def pad_to(picture: Picture, bucket: tuple[int, int], colour: tuple[int, int, int]) -> Picture:
    """Return a picture scaled to lie inside a bucket, in its middle, with a border of one colour.

    Args:
        picture: uint8 (height, width, 3).
        bucket: width and height in pixels.
        colour: RGB.
    """
    height, width = picture.shape[:2]
    scale = enlargement(width, height, bucket, pad=True)
    wide, tall = min(bucket[0], max(1, round(width * scale))), min(bucket[1], max(1, round(height * scale)))
    inner = picture if (wide, tall) == (width, height) else fit(picture, (wide, tall))
    left, top = (bucket[0] - wide) // 2, (bucket[1] - tall) // 2
    right, bottom = bucket[0] - wide - left, bucket[1] - tall - top
    return np.asarray(cv2.copyMakeBorder(inner, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour))
