"""Look at a picture once: what its file says of itself, and a small upright copy to measure, from one decoding.

Memory: a picture is held once, in its own mode, and shrunk band by band, so that 45 million pixels with transparency
take 200 MB and not several times that (and a plain PNG's file beside them); and few pictures of that size are held at
once, see ``Room``.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from lorasmith.dataset.picture import (
    TURNS,
    Picture,
    PictureInfo,
    fraction,
    grey8,
    opened,
    orientation_of,
    profile_kind,
    to_rgb,
)
from lorasmith.dataset.png import plain_pixels
from lorasmith.files import sha256_file

SIDE = 512  # pixels of the small copy's shorter side
LONGEST = 4 * SIDE
_NEARLY = 0.9  # of SIDE; a whole fraction of a picture that is no smaller is taken as it is, being the fastest
_BAND = 1 << 22  # pixels that are converted at once
ROOM = 24_000_000  # pixels that are decoded at the same time, or one picture of any size


@dataclass(frozen=True)
class Look:
    """What one look at a picture gave.

    Args:
        info: what ``probe`` gives.
        orientation: EXIF's number; 1 is upright.
        bits: for each value, as 8 or 16.
        transparent: the share of pixels that are not opaque; None where the file has no transparency.
        profile: the name of a colour profile other than sRGB; "damaged" for one that cannot be applied; else empty.
        picture: the small copy, uint8 RGB of shape (height, width, 3), upright, in sRGB, transparency laid on white;
            shorter side ``SIDE`` at most, longer ``LONGEST``.
    """

    info: PictureInfo
    orientation: int
    bits: int
    transparent: float | None
    profile: str
    picture: Picture


class Room:
    """Lets pictures in as long as their pixels together are few; one too large for the room goes in alone."""

    def __init__(self, pixels: int, context: BaseContext | None = None) -> None:
        """Make a room for this process's threads, or with a ``context`` for the processes that it starts."""
        self._all = pixels
        self._free: Any = SimpleNamespace(value=pixels) if context is None else context.Value("q", pixels, lock=False)
        self._changed: Any = threading.Condition() if context is None else context.Condition()

    @contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        need = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free.value >= need)
            self._free.value -= need
        try:
            yield
        finally:
            with self._changed:
                self._free.value += need
                self._changed.notify_all()


_room = Room(ROOM)


def share_room(room: Room) -> None:
    """From now on let pictures into a room that other processes use too."""
    global _room
    _room = room


def look(path: Path) -> Look:
    """Decode a picture once, shrink it, and say what its file is. Safe to call from several threads at once.

    Raises:
        PictureError: it cannot be used.
    """
    with opened(path) as image:
        mode, file_format, (width, height) = image.mode, str(image.format), image.size
        with _room(width * height):
            pages = int(getattr(image, "n_frames", 1)) if file_format == "TIFF" else 1
            if plain := plain_pixels(image, path):
                orientation, sha256 = 1, hashlib.sha256(plain[1]).hexdigest()
                small, transparent = _shrunk_pixels(plain[0], image)
                del plain
            else:
                image.draft(None, _scaled(_least_size(width, height), _NEARLY))
                image.load()
                orientation, sha256 = orientation_of(image), sha256_file(path)
                small, transparent = _shrunk(image)
        profile = profile_kind(image)
        if turn := TURNS.get(orientation):
            small = small.transpose(turn)
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        bits = 16 if mode.startswith("I;16") else 32 if mode in ("I", "F") else 8
        info = PictureInfo(width, height, mode, file_format, pages, sha256)
        return Look(info, orientation, bits, transparent, profile, np.asarray(small))


def _least_size(width: int, height: int) -> tuple[int, int]:
    """Return the size of the small copy of a picture."""
    scale = min(1.0, SIDE / min(width, height), LONGEST / max(width, height))
    scale = max(scale, min(1.0, SIDE / min(width, height) / 4))  # no thinner than a quarter of what a square gets
    return max(1, round(width * scale)), max(1, round(height * scale))


def _scaled(size: tuple[int, int], share: float) -> tuple[int, int]:
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _shrunk(image: Image.Image) -> tuple[Image.Image, float | None]:
    """Return a loaded picture as small RGB, not turned yet, and the share of its pixels that are not opaque."""
    size, factor = _least_size(*image.size), _whole_factor(*image.size)
    if image.mode.startswith("I") or image.mode == "F":
        thin = image if factor == 1 else _thinned(image, factor)
        return Image.fromarray(grey8(thin)).convert("RGB").resize(size, Image.Resampling.BOX), None
    clear = "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
    mode = "RGBA" if clear else "CMYK" if image.mode == "CMYK" else "RGB"
    canvas = Image.new(mode, (-(-image.width // factor), -(-image.height // factor)))
    rows = max(1, _BAND // image.width // factor) * factor
    seen_through = 0
    for top in range(0, image.height, rows):
        band = image
        if rows < image.height:
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            band.info = image.info  # a transparent colour of the palette stands there
        band = band if band.mode == mode else band.convert(mode)
        if clear:
            seen_through += band.width * band.height - band.getchannel("A").histogram()[255]
        canvas.paste(band.reduce(factor) if factor > 1 else band, (0, top // factor))
    small = _finished(canvas, image.info, size)
    return small, seen_through / (image.width * image.height) if clear else None


def _shrunk_pixels(pixels: Picture, image: Image.Image) -> tuple[Image.Image, float | None]:
    """As ``_shrunk``, of an open picture and its pixels, uint8 (height, width, 3 or 4)."""
    if pixels.shape[2] == 3:
        canvas = Image.fromarray(fraction(pixels, _whole_factor(*image.size)))
        return _finished(canvas, image.info, _least_size(*image.size)), None
    loaded = Image.fromarray(pixels)  # shares the memory
    loaded.info = image.info
    return _shrunk(loaded)


def _whole_factor(width: int, height: int) -> int:
    nearly = _scaled(_least_size(width, height), _NEARLY)
    return max(1, min(width // nearly[0], height // nearly[1]))


def _finished(canvas: Image.Image, info: dict[Any, Any], size: tuple[int, int]) -> Image.Image:
    canvas.info = {key: value for key, value in info.items() if key == "icc_profile"}
    small = to_rgb(canvas)
    if small.width > size[0] or small.height > size[1]:
        small = small.resize(size, Image.Resampling.BOX)
    return small


def _thinned(image: Image.Image, factor: int) -> Image.Image:
    """Return every ``factor``-th pixel of a picture of one deep channel; what ``grey8`` asks of it is kept."""
    thin = image.resize((max(1, image.width // factor), max(1, image.height // factor)), Image.Resampling.NEAREST)
    thin.format = image.format
    if hasattr(image, "tag_v2"):
        thin.tag_v2 = image.tag_v2  # type: ignore[attr-defined]
    return thin
