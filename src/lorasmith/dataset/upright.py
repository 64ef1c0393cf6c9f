"""Read a picture for a curation: upright, in sRGB, transparency laid on a colour, and what was done for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lorasmith.dataset.background import border_colour, hex_of, rgb
from lorasmith.dataset.picture import (
    TURNS,
    Picture,
    bands,
    grey8,
    is_deep,
    opened,
    orientation_of,
    profile_kind,
    rgb_of,
    turned,
)

_ROWS = 256  # laid on a colour at once


def as_stored(path: Path) -> Picture:
    """Return a picture as its file has it: not turned, no profile applied, transparent pixels magenta.

    Raises:
        PictureError: it cannot be used.
    """
    with opened(path) as image:
        image.load()
        if is_deep(image):
            picture = grey8(image)[..., None].repeat(3, -1)
        else:
            picture = np.empty((image.height, image.width, 3), dtype=np.uint8)
            for rows, band in bands(image):
                layer = band.convert("RGBA")
                laid = Image.alpha_composite(Image.new("RGBA", layer.size, "magenta"), layer)
                picture[rows] = np.asarray(laid.convert("RGB"))
    return picture


def read_picture(path: Path, alpha: str) -> tuple[Picture, dict[str, Any]]:
    """Return a picture upright, in sRGB, on a colour, and what had to be done for that.

    Args:
        path: the file.
        alpha: what shows through: ``#rrggbb``, or ``auto``: the most usual colour along the border of what is opaque.

    Raises:
        PictureError: it cannot be used.
    """
    how: dict[str, Any] = {}
    with opened(path) as image:
        image.load()
        turn, mode, profile = orientation_of(image), image.mode, profile_kind(image)
        picture, cover = rgb_of(image), _cover(image)  # on white
    if turn in TURNS:
        how["turned"] = turn
        picture, cover = turned(picture, turn), None if cover is None else turned(cover, turn)
    if mode != "RGB":
        how["mode"] = mode
    if profile:
        how["profile"] = profile
    if cover is not None and cover.min() < 255:
        colour = border_colour(picture, cover == 255) if alpha == "auto" else rgb(alpha)
        how |= {"alpha": hex_of(colour), "transparent": round(1 - float(cover.mean(dtype=np.float64)) / 255, 4)}
        for top in range(0, len(picture), _ROWS):
            part = picture[top : top + _ROWS]
            through = (255 - cover[top : top + _ROWS].astype(np.float32))[..., None] / 255
            part[:] = np.clip(np.rint(part + through * (np.array(colour, np.float32) - 255)), 0, 255)
    return picture, how


def _cover(image: Image.Image) -> Picture | None:
    """Return how opaque a picture's pixels are, uint8 (height, width); None where its file has no transparency."""
    if is_deep(image) or not ("transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")):
        return None
    cover = np.empty((image.height, image.width), dtype=np.uint8)
    for rows, band in bands(image):
        cover[rows] = np.asarray(band.convert("RGBA").getchannel("A"))
    return cover
