"""The backgrounds the renderer can draw: colour pictures in float32, 0 to 255, and the words for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Colour = tuple[float, float, float]


def jitter(rng: np.random.Generator, rgb: Colour, amount: float = 10.0) -> Image:
    """Return a colour near ``rgb``, float32 (3,), within 0 to 255."""
    return np.clip(np.array(rgb) + rng.uniform(-amount, amount, 3), 0, 255).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, cells: int, stretch: int = 1) -> Image:
    """Return smooth noise, float32 (size, size), about -1 to 1: ``cells`` bumps down, ``cells / stretch`` across."""
    coarse = rng.uniform(-1, 1, (cells, max(2, cells // stretch))).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _flat(size: int, colour: Image) -> Image:
    return np.broadcast_to(colour, (size, size, 3)).astype(np.float32)


def _textured(base: Image, *layers: tuple[Image, float]) -> Image:
    grain = sum(noise * strength for noise, strength in layers)
    return base + np.asarray(grain, dtype=np.float32)[..., None]


def plain(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """One colour."""
    return _flat(size, jitter(rng, colour, 6))


def gradient(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """One colour fading into a lighter or darker shade of it, in a random direction."""
    a = jitter(rng, colour, 6)
    b = a * 0.35 + (255 * 0.65 if a.mean() < 128 else 0)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = np.clip(0.5 + axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle), 0, 1).astype(np.float32)
    return np.asarray(a + (b - a) * ramp[..., None], dtype=np.float32)


def wood(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """Planks with grain."""
    planks = int(rng.integers(3, 6))
    image = _flat(size, jitter(rng, (172, 122, 74), 14))
    image = _textured(image, (smooth_noise(rng, size, 48, 16), 9.0), (smooth_noise(rng, size, 16, 8), 7.0))
    edges = np.linspace(0, size, planks + 1).astype(int)
    for top, bottom in itertools.pairwise(edges):
        image[top:bottom] *= rng.uniform(0.86, 1.08)
        image[top : top + max(1, size // 96)] *= 0.5
    return image if rng.random() < 0.6 else np.ascontiguousarray(image.transpose(1, 0, 2))


def stone(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """Grey, mottled at several scales."""
    base = _flat(size, jitter(rng, (142, 142, 146), 14))
    return _textured(base, *((smooth_noise(rng, size, c), s) for c, s in ((5, 14.0), (14, 12.0), (48, 10.0))))


def tiles(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """A chequered floor in white and one colour."""
    cells = int(rng.integers(4, 8))
    index = np.floor((np.arange(size) + rng.uniform(0, size)) * cells / size).astype(int)
    odd = ((index[None, :] + index[:, None]) % 2).astype(np.float32)[..., None]
    light, dark = jitter(rng, (232, 230, 226), 8), jitter(rng, colour, 8)
    if dark.mean() > 190:
        dark = jitter(rng, (150, 150, 150), 8)
    return np.asarray(light * (1 - odd) + dark * odd, dtype=np.float32)


def grass(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """Short strokes in greens."""
    image = _flat(size, jitter(rng, (74, 128, 52), 12)).copy()
    n = 220
    ends = rng.uniform(0, size, (n, 2))
    lean = rng.normal(0, size * 0.015, n)
    tall = rng.uniform(0.04, 0.1, n) * size
    shade = rng.uniform(0.7, 1.4, n)
    for (x, y), dx, dy, s in zip(ends, lean, tall, shade):
        colour_here = (62 * s, 122 * s, 44 * s)
        cv2.line(image, (int(x), int(y)), (int(x + dx), int(y - dy)), colour_here, max(1, size // 90), cv2.LINE_AA)
    return image


def bricks(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """Courses of bricks in mortar."""
    image = _flat(size, jitter(rng, (190, 182, 172), 10)).copy()
    rows = int(rng.integers(5, 8))
    tall = size / rows
    wide = tall * rng.uniform(1.8, 2.4)
    gap = max(1.0, size * 0.014)
    brick = jitter(rng, (158, 76, 58), 12)
    for row in range(rows):
        x = -wide * (0.5 if row % 2 else 0.0) - rng.uniform(0, wide * 0.1)
        while x < size:
            corner, far = (int(x + gap), int(row * tall + gap)), (int(x + wide - gap), int((row + 1) * tall - gap))
            cv2.rectangle(image, corner, far, (brick * rng.uniform(0.82, 1.12)).tolist(), -1)
            x += wide
    return image


def sand(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """Pale yellow with fine grain and long ripples."""
    base = _flat(size, jitter(rng, (220, 196, 148), 10))
    grain = rng.normal(0, 1, (size, size)).astype(np.float32)
    ripples = np.sin(np.linspace(0, rng.uniform(20, 40), size, dtype=np.float32))[:, None] + smooth_noise(rng, size, 6)
    return _textured(base, (grain, 6.0), (np.asarray(ripples, dtype=np.float32), 7.0))


def sky(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """Blue with soft white clouds."""
    blue = jitter(rng, (112, 168, 226), 10)
    cloud = smooth_noise(rng, size, 5) * 0.7 + smooth_noise(rng, size, 10) * 0.45
    cover = np.clip(cloud * 1.6 + rng.uniform(-0.3, 0.2), 0, 1)[..., None]
    return np.asarray(blue * (1 - cover) + 246 * cover, dtype=np.float32)


def stripes(rng: np.random.Generator, size: int, colour: Colour) -> Image:
    """Cloth with stripes of one colour on cream."""
    angle, period = rng.uniform(0, np.pi), size / rng.uniform(4, 8)
    axis = np.arange(size, dtype=np.float32)
    phase = (axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle)) / period + rng.uniform(0, 1)
    wave = np.clip(np.sin(phase * 2 * np.pi) * 4 + 0.5, 0, 1)[..., None]
    cream, dye = jitter(rng, (238, 228, 206), 6), jitter(rng, colour, 8)
    return np.asarray(cream * (1 - wave) + dye * wave, dtype=np.float32)


Draw = Callable[[np.random.Generator, int, Colour], Image]

# name -> (how it is drawn, the words for it; {colour} stands where the background has one of its own)
BACKGROUNDS: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "plain": (plain, ("on a plain {colour} background", "on a {colour} background")),
    "gradient": (gradient, ("on a {colour} gradient", "on a {colour} gradient background")),
    "wood": (wood, ("on a wooden table", "on wood planks")),
    "stone": (stone, ("on a stone floor", "on grey stone")),
    "tiles": (tiles, ("on a chequered floor", "on tiles")),
    "grass": (grass, ("on grass", "lying in the grass")),
    "bricks": (bricks, ("against a brick wall", "in front of bricks")),
    "sand": (sand, ("on sand", "on a sandy beach")),
    "sky": (sky, ("against a cloudy sky", "in front of the sky")),
    "stripes": (stripes, ("on striped cloth", "on a striped blanket")),
}
