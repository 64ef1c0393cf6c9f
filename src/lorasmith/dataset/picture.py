"""Read pictures, whatever a camera, an editor or a stranger put into the file.

Every oddity of a decoder becomes a ``PictureError``, a ``DataError`` that knows its code in ``finding.KINDS``.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from lorasmith.dataset.finding import KINDS, shown
from lorasmith.dataset.png_chunks import png_damage
from lorasmith.errors import DataError
from lorasmith.files import sha256_file

# What Pillow warns of (odd EXIF, many pixels) is handled here. Not catch_warnings, which is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

Picture = npt.NDArray[np.uint8]

_BAND = 4_000_000  # pixels that are converted at once
_LARGE = 8_000_000  # pixels that take longer to decode than a file takes to be looked through
MAX_PIXELS = 120_000_000  # a 108-megapixel phone passes; 8 bits of RGB are then 360 MB
WHOLE_PIXELS = 45_500_000  # in a format that has to be decoded whole; a 45-megapixel camera passes
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pnm", ".tga", ".jp2"}
)
UNSUPPORTED_SUFFIXES = frozenset(
    {".heic", ".heif", ".jxl", ".psd", ".psb", ".xcf", ".kra", ".svg", ".eps", ".pdf", ".exr", ".hdr", ".ico"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
)
# Named one by one: Pillow also opens formats that run other programs (EPS) or that match nearly any bytes (TGA).
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
_SCALABLE = ("JPEG", "MPO")  # decoded at a fraction of their size, in a fraction of the time
_ANIMATED = ("PNG", "GIF", "WEBP", "AVIF")  # an MPO's further frames are a camera's previews
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # tags of TIFF 6.0, section 8
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(DataError):
    """A picture that cannot be used; ``code`` is a key of ``finding.KINDS``."""

    def __init__(self, code: str, what: str, path: Path) -> None:
        super().__init__(what, where=shown(path, limit=None), fix=KINDS[code].fix)
        self.code = code


@dataclass(frozen=True)
class PictureInfo:
    """What a picture's file says of itself.

    Args:
        width: pixels, after the camera's rotation is applied.
        height: pixels, after the camera's rotation is applied.
        mode: Pillow's name of the pixel format, as ``RGB``.
        format: Pillow's name of the file format, as ``JPEG``, whatever the file is called.
        pages: pictures in the file; all but the first are left alone.
        sha256: of the file's bytes, in hexadecimal.
    """

    width: int
    height: int
    mode: str
    format: str
    pages: int
    sha256: str


def probe(path: Path) -> PictureInfo:
    """Decode a picture as cheaply as proves that it can be decoded, and say what it is.

    Raises:
        PictureError: it cannot be used.
    """
    with opened(path) as image:
        mode, file_format, (width, height) = image.mode, str(image.format), image.size
        pages = int(getattr(image, "n_frames", 1)) if file_format == "TIFF" else 1
        image.draft(None, (1, 1))  # a JPEG is then decoded at an eighth of its size
        image.load()
        if orientation_of(image) in (5, 6, 7, 8):
            width, height = height, width
        return PictureInfo(width, height, mode, file_format, pages, sha256_file(path))


def open_rgb(path: Path) -> Picture:
    """Return a picture as uint8 of shape (height, width, 3): upright, in sRGB, transparency laid on white.

    Sixteen bits are scaled to eight. An embedded colour profile other than sRGB is applied. Numbers of 32 bits and
    floats declare no white, so white is the first of 1 (floats only), 255 and 65535 that no pixel exceeds, or else
    the largest pixel.

    Raises:
        PictureError: it cannot be used.
    """
    with opened(path) as image:
        image.load()
        turn = orientation_of(image)
        picture = rgb_of(image)
    return turned(picture, turn)


def rgb_of(image: Image.Image) -> Picture:
    """Return a loaded picture of any mode as ``open_rgb`` does, but not turned.

    Band by band, so that a large picture is in memory twice and not four times.
    """
    result = np.empty((image.height, image.width, 3), dtype=np.uint8)
    if is_deep(image):
        result[:] = grey8(image)[..., None]
    else:
        for rows, band in bands(image):
            result[rows] = np.asarray(to_rgb(band))
    return result


def is_deep(image: Image.Image) -> bool:
    """Return whether a picture's one channel has more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield a loaded picture in bands of some megapixels, each with its rows; what is said of the picture is kept."""
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        yield slice(None), image
        return
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        band = image.crop((0, top, image.width, bottom))
        band.info = image.info  # a transparent colour of the palette stands there, and the colour profile
        yield slice(top, bottom), band


def turned(picture: Picture, orientation: int) -> Picture:
    """Return an array of pixels, (height, width, ...), turned upright as EXIF's number says."""
    if orientation in (2, 4, 5, 7):
        picture = picture[:, ::-1]
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)  # quarters, to the left
    return np.ascontiguousarray(np.rot90(picture, turns))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture and look at its header, before any pixel is decoded.

    Raises:
        PictureError: it cannot be used; whatever Pillow raises in the block becomes one too.
    """
    name = shown(path.name)
    try:
        if not path.is_file():  # a pipe would be waited on for ever
            raise PictureError("unreadable-file", f"{name} is not a file.", path)
        with Image.open(path, formats=_formats(path.suffix.lower() == ".tga")) as image:
            _refuse_huge(image, name, path)
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                raise PictureError("animated", f"{name} is an animation.", path)
            _refuse_damaged_png(image, name, path)
            yield image
    except PictureError:
        raise
    except Exception as error:  # a decoder fed with hostile bytes raises nearly anything
        raise _picture_error(error, name, path) from error


def _refuse_huge(image: Image.Image, name: str, path: Path) -> None:
    most = MAX_PIXELS if image.format in _SCALABLE else WHOLE_PIXELS
    if image.width * image.height > most:
        size = f"{image.width} x {image.height} pixels, {image.width * image.height / 1e6:,.1f} million"
        limit = f"{most / 1e6:g} million are the limit for {image.format}"
        raise PictureError("too-many-pixels", f"{name} says it has {size}; {limit}.", path)


def _refuse_damaged_png(image: Image.Image, name: str, path: Path) -> None:
    """Refuse a large PNG file that is not whole before a second is spent on its pixels."""
    if image.format == "PNG" and image.width * image.height > _LARGE and (damage := png_damage(path)):
        raise PictureError("damaged-picture", f"{name} is damaged or cut short: {damage}.", path)


def _picture_error(error: Exception, name: str, path: Path) -> PictureError:
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return PictureError("too-many-pixels", f"{name} has more pixels than can be read safely.", path)
    if isinstance(error, UnidentifiedImageError):
        if path.stat().st_size == 0:
            return PictureError("empty-file", f"{name} is empty.", path)
        if path.suffix.lower() in UNSUPPORTED_SUFFIXES:
            return PictureError("unsupported-format", f"{name} is in a format that cannot be read.", path)
        return PictureError("not-a-picture", f"{name} is not a picture, or its beginning is damaged.", path)
    if isinstance(error, OSError) and error.errno is not None:
        return PictureError("unreadable-file", f"{name} cannot be read: {error.strerror}.", path)
    return PictureError("damaged-picture", f"{name} is damaged or cut short: {shown(error)}.", path)


@lru_cache(maxsize=2)
def _formats(targa: bool) -> tuple[str, ...]:
    Image.init()
    names = (*_FORMATS, "TGA") if targa else _FORMATS
    return tuple(name for name in names if name in Image.OPEN)  # AVIF is not in every build


def fraction(picture: Picture, factor: int) -> Picture:
    """Return a picture at a whole fraction of its size, which takes a seventh of the time that another size takes.

    Args:
        picture: uint8 (height, width, 3); what is left over on the right and at the bottom is cut off.
        factor: how many times smaller; sides get no smaller than 1.
    """
    height, width = (max(1, side // factor) for side in picture.shape[:2])
    part = picture[: height * factor, : width * factor]
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)) if factor > 1 else picture


def orientation_of(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to lose a picture
        return 1


def grey8(image: Image.Image) -> Picture:
    """Return a loaded picture of one 16-bit, 32-bit or float channel as uint8 of shape (height, width)."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        white = float(2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1)
    elif image.format in ("PNG", "PPM"):
        white = 65535.0
    else:
        peak = max(float(_finite(band).max()) for _, band in bands(image))
        white = next((w for w in ((1.0,) if image.mode == "F" else ()) + (255.0, 65535.0) if peak <= w), peak)
    inverted = image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0  # Pillow leaves WhiteIsZero to us
    result = np.empty((image.height, image.width), dtype=np.uint8)
    for rows, band in bands(image):
        scaled = np.clip(_finite(band) / white, 0.0, 1.0)
        result[rows] = (1.0 - scaled if inverted else scaled) * 255.0 + 0.5
    return result


def _finite(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded picture of 8-bit channels as RGB, with its colour profile applied, on white."""
    transparent = "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "PA")
    wanted = "RGBA" if transparent else "CMYK" if image.mode == "CMYK" else "RGB"
    image = _in_srgb(image if image.mode == wanted else image.convert(wanted))
    if transparent:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """Return an RGB, RGBA or CMYK picture with its embedded colour profile applied, if it has one that can be."""
    data = image.info.get("icc_profile")
    if data:
        with suppress(OSError, ImageCms.PyCMSError):  # a damaged profile is no reason to lose a picture
            profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
            space = "CMYK" if image.mode == "CMYK" else "RGB"
            described = profile.profile.profile_description or ""
            if profile.profile.xcolor_space.strip() == space and "sRGB" not in described:
                mode = "RGBA" if image.mode == "RGBA" else "RGB"
                srgb = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(image, profile, srgb, outputMode=mode) or image
    return image


def profile_kind(image: Image.Image) -> str:
    """Return the name of an open picture's colour profile, "damaged" if it cannot be applied, "" for sRGB or none."""
    data = image.info.get("icc_profile")
    if not data:
        return ""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data)).profile
        space = {"CMYK": "CMYK", "L": "GRAY", "LA": "GRAY", "1": "GRAY"}.get(image.mode, "RGB")
        if image.mode.startswith("I") or image.mode == "F":
            space = "GRAY"
        name = " ".join(str(profile.profile_description or "without a name").split())
        if profile.xcolor_space.strip() != space:
            return "damaged"
    except Exception:  # a decoder fed with hostile bytes raises nearly anything
        return "damaged"
    return "" if "srgb" in name.lower() or space == "GRAY" else shown(name)
