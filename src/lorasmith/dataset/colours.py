"""Name the colours of a picture: which of a few dozen well-known colours each pixel is nearest to in CIE Lab."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

# Several samples of each name, in sRGB: what the word is used for, in light and in shadow. The names are Berlin and
# Kay's eleven basic colour terms (1969) with beige and silver, which people use of things.
_SAMPLES: dict[str, tuple[str, ...]] = {
    "black": ("000000", "141418", "26262a", "2c2826"),
    "grey": ("46464a", "606064", "7a7a7e", "8c8c8c"),
    "silver": ("a0a4aa", "b4b8be", "c4c8cc"),
    "white": ("ffffff", "f4f4f2", "e6e6e4", "dadada"),
    "red": ("d21e28", "b01820", "e83c3c", "8c1018"),
    "orange": ("f28418", "e06c10", "ff9c3c", "c8640c"),
    "yellow": ("f6da2c", "e6c820", "fff05a", "c8a814"),
    "green": ("2c963e", "1e6e2c", "58b858", "78c850", "4a8034", "2a4a20", "98d890"),
    "blue": ("2454ce", "183a90", "4c80e8", "70a8e2", "10245c", "98c4f0", "20a0d0", "6aa8b8", "8cc4cc"),
    "purple": ("8030a8", "5c2080", "a05cc8", "3c145a", "b48cd8"),
    "pink": ("f48cb4", "ff60a0", "ffb4cc", "d85c8c"),
    "brown": ("7a4822", "5a3418", "946038", "3e2614", "a4703c", "6e5038"),
    "beige": ("dcc494", "e8d8b4", "c8ac7c", "eee4ca"),
}
NAMES = tuple(_SAMPLES)
_LIGHTNESS = 0.6  # weight of lightness against hue and chroma: shading changes the lightness of one and the same thing
_MOST_PIXELS = 20_000


def colour_shares(pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return which share of the pixels has each colour, the largest first; no share of none.

    Args:
        pixels: uint8 RGB (N, 3).
    """
    if not len(pixels):
        return {}
    step = -(-len(pixels) // _MOST_PIXELS)
    lab = _lab(pixels[::step])
    samples = _lab(np.array([_rgb(s) for each in _SAMPLES.values() for s in each], dtype=np.uint8))
    owner = np.repeat(np.arange(len(NAMES)), [len(each) for each in _SAMPLES.values()])
    best, nearest = np.full(len(lab), np.inf, dtype=np.float32), np.zeros(len(lab), dtype=np.int64)
    for sample, name in zip(samples, owner):
        distance = np.square(lab - sample).sum(1)
        closer = distance < best
        best[closer], nearest[closer] = distance[closer], name
    counts = np.bincount(nearest, minlength=len(NAMES)) / len(lab)
    return {NAMES[i]: float(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i] > 0}


def colour_spread(pixels: npt.NDArray[np.uint8]) -> float:
    """Return how far the pixels' colours lie from their median: the 90th percentile, in Lab units (1: just visible)."""
    if not len(pixels):
        return 0.0
    lab = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return float(np.percentile(np.linalg.norm(lab - np.median(lab, axis=0), axis=1), 90))


def _lab(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    lab = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return np.asarray(lab * np.array([_LIGHTNESS, 1, 1], dtype=np.float32), dtype=np.float32)


def _rgb(text: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text))
