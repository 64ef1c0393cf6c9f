"""Pictures of nothing in particular, so that the starter's VAE can encode what users bring.

Dead leaves (Lee, Mumford and Huang 2001: discs of power-law sizes that hide one another) have the statistics of
natural scenes; the procedural textures add fine grain, waves and blends.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lorasmith.starter.backgrounds import smooth_noise


def dead_leaves(seed: int, size: int = 128) -> NDArray[np.uint8]:
    """Return overlapping shapes of random colours and power-law sizes, uint8 RGB (size, size, 3)."""
    rng = np.random.default_rng(seed)
    palette = rng.uniform(0, 255, (int(rng.integers(3, 12)), 3))
    image = np.zeros((size, size, 3), dtype=np.uint8)
    image[:] = palette[0]
    radii = np.sort(size * 0.02 * rng.uniform(0.001, 1.0, 260) ** -0.55)[::-1].clip(2, size * 0.6)
    for radius in radii:
        colour = np.clip(palette[rng.integers(len(palette))] + rng.normal(0, 16, 3), 0, 255).tolist()
        centre = rng.uniform(0, size, 2)
        if rng.random() < 0.5:
            cv2.circle(image, np.rint(centre * 16).astype(int).tolist(), int(radius * 16), colour, -1, cv2.LINE_AA, 4)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            cv2.fillPoly(image, [np.rint(corners * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)
    shade = smooth_noise(rng, size, 4) * rng.uniform(0, 40) + smooth_noise(rng, size, 40) * rng.uniform(0, 14)
    image = np.clip(image.astype(np.float32) + shade[..., None], 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 2.5)))
    return np.asarray(image, dtype=np.uint8)


def procedural(seed: int, size: int = 128) -> NDArray[np.uint8]:
    """Return waves, blends and grain in random colours, uint8 RGB (size, size, 3)."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.uniform(0, 255, (3, 3)).astype(np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle, waves = rng.uniform(0, np.pi), rng.uniform(1, 14)
    line = axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle)
    bend = smooth_noise(rng, size, int(rng.integers(3, 9))) * rng.uniform(0, 0.5)
    mix = 0.5 + 0.5 * np.sin((line + bend) * waves * np.pi)
    other = 0.5 + 0.5 * smooth_noise(rng, size, int(rng.integers(3, 40)))
    image = a + (b - a) * mix[..., None] + (c - a) * (other * rng.uniform(0, 0.6))[..., None]
    image += rng.normal(0, rng.uniform(0, 10), (size, size, 1))
    return np.asarray(np.clip(image, 0, 255), dtype=np.uint8)
