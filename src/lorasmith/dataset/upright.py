"""Read a picture for a curation: upright, in sRGB, transparency laid on a colour, and what was done for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lorasmith.dataset.background import border_colour, hex_of, rgb
from lorasmith.dataset.picture import TURNS, Picture, grey8, opened, orientation_of, profile_kind, to_rgb


def as_stored(path: Path) -> Picture:
    """Return a picture as its file has it: not turned, no profile applied, transparent pixels magenta.

    Raises:
        PictureError: it cannot be used.
    """
    with opened(path) as image:
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            return np.array(Image.fromarray(grey8(image)).convert("RGB"))
        layer = image.convert("RGBA")
        return np.array(Image.alpha_composite(Image.new("RGBA", layer.size, "magenta"), layer).convert("RGB"))


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
        turn, mode = orientation_of(image), image.mode
        profile = profile_kind(image)
        deep = mode.startswith("I") or mode == "F"
        flat = Image.fromarray(grey8(image)).convert("RGB") if deep else to_rgb(image)  # on white
        cover = None
        if not deep and ("transparency" in image.info or mode in ("RGBA", "RGBa", "LA", "PA")):
            cover = image.convert("RGBA").getchannel("A")
        if turn in TURNS:
            how["turned"] = turn
            flat, cover = flat.transpose(TURNS[turn]), cover and cover.transpose(TURNS[turn])
    if mode != "RGB":
        how["mode"] = mode
    if profile:
        how["profile"] = profile
    picture = np.array(flat)
    if cover is not None and np.array(cover).min() < 255:
        opaque = np.array(cover)
        colour = border_colour(picture, opaque == 255) if alpha == "auto" else rgb(alpha)
        through = (255 - opaque.astype(np.float32))[..., None] / 255
        picture = np.clip(np.rint(picture + through * (np.array(colour, np.float32) - 255)), 0, 255).astype(np.uint8)
        how |= {"alpha": hex_of(colour), "transparent": round(float(through.mean()), 4)}
    return picture, how
