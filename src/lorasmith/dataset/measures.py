"""Measure a picture cheaply: how soft, how bright, with bars or not, and what it is compared with others by.

All figures come from a copy whose shorter side is some 512 pixels; a megapixel takes a few hundredths of a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.picture import Picture, fraction
from lorasmith.dataset.quantiles import median, quantile

VERSION = 2  # of what is measured and how; kept measures of another version are made again
HASH_SIDE = 32

_Float = npt.NDArray[np.float32]
_NARROW, _WIDE = 1.0, 2.0  # sigmas in pixels of the two re-blurrings that softness is measured with
_FAINTEST_EDGE = 4.0  # levels per pixel, of the wide re-blurring; less is grain
_FEWEST_EDGES = 8, 1.5e-4  # pixels, and share of the picture, below which there is nothing to judge sharpness by
_AROUND = np.ones((3, 3), np.uint8)
_SOMETHING, _NO_EDGES = 15.0, 6.0  # a picture with that many levels of contrast and no edge is that soft, or more
_PLAIN = 14.0  # levels from the border's own colour, within which a pixel is plain background
_FLOODED = 128  # any value that is neither near (255) nor not (0)
_BAR_FLAT = 6.0  # levels that a bar may differ in itself
_BAR_SPECKS = 0.03  # the share of a bar's pixels that may differ more
_BAR_STEP = 12.0  # levels between a bar and the picture, in ...
_BAR_SAMPLES = 128  # pixels of a row that are looked at
_BAR_SHARE = 0.6  # ... this share of the bar's length
_SMALL = 256  # pixels of the longer side at most, for what needs no finer look
_RING = 0.06  # of the shorter side, at the border, for what counts as background in comparing pictures


@dataclass(frozen=True)
class Measures:
    """What was measured of a picture.

    Args:
        softness: sigma of the blur on the sharpest edges, in pixels of the copy that was measured; below about 1 is
            sharp. NaN where the picture shows next to nothing.
        subject_share: the share of the picture that is not plain background.
        white_share: the share of the subject that is 253 or brighter in every channel, 0 to 1.
        brightest: luma that 98 % of the subject stays under, 0 to 255.
        bars: share of the width or height that a bar of one colour takes: left, top, right, bottom.
        plain: whether the background is of one colour, without anything in it.
        grey: whether the picture has no colour at all.
        hash: uint8 (32, 32, 3), a perceptual hash for ``duplicates``: the picture in miniature.
        background: float32, the colours and the grain of the border.
        composition: float32, where in the picture there is something to see and which way its edges run.
        light: float32, brightness, contrast, direction and warmth.
    """

    softness: float
    subject_share: float
    white_share: float
    brightest: float
    bars: tuple[float, float, float, float]
    plain: bool
    grey: bool
    hash: Picture
    background: _Float
    composition: _Float
    light: _Float


def measure(picture: Picture) -> Measures:
    """Measure a picture.

    Args:
        picture: uint8 RGB of shape (height, width, 3); the shorter side best some 512 pixels, see ``look``.
    """
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = fraction(picture, -(-max(luma.shape) // _SMALL))
    border = _border(small)
    subject = _subject(small, border)
    chosen = subject if subject.mean() > 0.01 else np.ones_like(subject)
    mini = perceptual_hash(small)
    seen = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)[chosen]
    return Measures(
        softness(luma),
        float(subject.mean()),
        float((cv2.inRange(small, (253, 253, 253), (255, 255, 255))[chosen] > 0).mean()),
        float(np.searchsorted(np.cumsum(np.bincount(seen, minlength=256)), 0.98 * len(seen))),
        bars(picture),
        _is_plain(border),
        _is_grey(small),
        mini,
        _background(small),
        _composition(small),
        _light(mini),
    )


def perceptual_hash(picture: Picture) -> Picture:
    """Return what ``duplicates`` compares: the picture in miniature, uint8 (32, 32, 3), whatever its shape was."""
    return np.asarray(cv2.resize(picture, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA))


def softness(luma: npt.NDArray[np.uint8]) -> float:
    """Return the sigma of the blur on a picture's sharpest edges, in pixels; NaN if it shows next to nothing.

    An edge blurred by s has, blurred again by a, the gradient A / sqrt(s^2 + a^2); the ratio of two such gradients
    gives s, whatever the edge's contrast (Zhuo and Sim, "Defocus map estimation from a single image", Pattern
    Recognition 44, 2011). Of all edges the sharp ones count, so a soft background does no harm.
    """
    levels = luma.astype(np.float32)
    narrow, wide = (_gradient(cv2.GaussianBlur(levels, (0, 0), sigma)) for sigma in (_NARROW, _WIDE))
    strong = wide > max(_FAINTEST_EDGE, quantile(wide[::4, ::4], 0.99) / 3)
    ridge = strong & (wide >= cv2.dilate(wide, _AROUND))  # on the line of the edge, not beside it
    places = np.flatnonzero(ridge)
    if len(places) < max(_FEWEST_EDGES[0], _FEWEST_EDGES[1] * ridge.size):
        return _NO_EDGES if float(levels.std()) >= _SOMETHING else float("nan")
    ratio = np.maximum(narrow.ravel()[places] / wide.ravel()[places], 1.0001)
    squared = (_WIDE**2 - ratio**2 * _NARROW**2) / (ratio**2 - 1)
    return math.sqrt(min(max(quantile(squared, 0.15), 0.0), 400.0))


def _gradient(levels: _Float) -> _Float:
    dx = cv2.Sobel(levels, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(levels, cv2.CV_32F, 0, 1, scale=1 / 8)
    return np.asarray(cv2.magnitude(dx, dy))


def bars(picture: Picture) -> tuple[float, float, float, float]:
    """Return how wide the bars of one colour along the left, top, right and bottom are, as shares of the side.

    A bar ends in a straight step over most of its length; a plain background around a subject is none.
    """
    upright, lying = picture, picture.transpose(1, 0, 2)
    found = []
    for rows in (lying, upright, lying[::-1], upright[::-1]):
        half = rows[: max(2, len(rows) // 2), :: max(1, rows.shape[1] // _BAR_SAMPLES)]
        colour = median(half[0].astype(np.float32), 0)
        if (_share_off(half[:2], colour, _BAR_FLAT) > _BAR_SPECKS).any():
            found.append(0.0)
            continue
        flat = _share_off(half, colour, _BAR_FLAT) <= _BAR_SPECKS
        depth = int(np.argmin(flat))  # 0 where all rows are flat, which is a plain picture and no bar
        # A resized bar ends in a row or two between the two colours, so the step is looked for a little further in.
        inside = half[min(depth + 2, len(half) - 1)][None]
        step = depth >= 2 and _share_off(inside, colour, _BAR_STEP)[0] >= _BAR_SHARE
        found.append(depth / len(rows) if step else 0.0)
    left, top, right, bottom = found
    return left, top, right, bottom


def _share_off(rows: Picture, colour: _Float, levels: float) -> _Float:
    """Return for each row the share of its pixels that are more than some levels off a colour."""
    low, high = np.clip(colour - levels, 0, 255), np.clip(colour + levels, 0, 255)
    near = cv2.inRange(np.ascontiguousarray(rows), np.ceil(low), np.floor(high))
    return np.asarray((near == 0).mean(axis=1), dtype=np.float32)


def _ring_width(picture: Picture) -> int:
    return int(max(1, round(min(picture.shape[:2]) * _RING)))


def _ring(picture: Picture) -> npt.NDArray[np.bool_]:
    wide = _ring_width(picture)
    ring = np.ones(picture.shape[:2], dtype=bool)
    ring[wide:-wide, wide:-wide] = False
    return ring


def _subject(picture: Picture, border: Picture) -> npt.NDArray[np.bool_]:
    """Return the mask of what is not plain background: of the border's commonest colour, and joined to the border."""
    common = _common_colour(border)
    near = cv2.inRange(picture, common - _PLAIN, common + _PLAIN)
    framed = cv2.copyMakeBorder(near, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=255)  # joins all that is at the border
    cv2.floodFill(framed, None, (0, 0), _FLOODED, flags=4)
    return np.asarray(framed[1:-1, 1:-1] != _FLOODED)


def _border(picture: Picture) -> Picture:
    """Return the colours along the border, uint8 (n, 3), in no order; in a tenth of the time that indexing takes."""
    wide = _ring_width(picture)
    if min(picture.shape[:2]) <= 2 * wide:
        return picture.reshape(-1, 3)
    inner = picture[wide:-wide]
    parts = (picture[:wide], picture[-wide:], inner[:, :wide], inner[:, -wide:])
    return np.concatenate([part.reshape(-1, 3) for part in parts])


def _common_colour(colours: Picture) -> npt.NDArray[np.int16]:
    red, green, blue = (colours >> 4).T.astype(np.int32)
    coarse = red * 256 + green * 16 + blue
    commonest = np.bincount(coarse, minlength=4096).argmax()
    return np.asarray(_middle(colours[coarse == commonest]), dtype=np.int16)


def _middle(colours: Picture) -> npt.NDArray[np.float64]:
    """Return the median colour, float64 (3,), by counting."""
    half = np.array([(len(colours) - 1) // 2, len(colours) // 2]) + 1
    counts = (np.cumsum(np.bincount(channel, minlength=256)) for channel in np.ascontiguousarray(colours.T))
    return np.array([np.searchsorted(count, half).mean() for count in counts])


def _is_plain(colours: Picture) -> bool:
    middle = _middle(colours)
    low, high = np.ceil(middle - 2 * _PLAIN), np.floor(middle + 2 * _PLAIN)
    near = cv2.inRange(colours[:, None], low, high)
    return bool(cv2.countNonZero(near) >= 0.9 * len(colours))


def _is_grey(picture: Picture) -> bool:
    red, green, blue = cv2.split(picture)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    return bool((spread > 6).mean() <= 0.01)


def _background(picture: Picture) -> _Float:
    """Return mean colour and histogram of the border in CIE Lab, and its grain; units of about one visible step."""
    small = cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    ring = _ring(small)
    colours = lab[ring]
    luma = lab[:, :, 0]
    grain = np.abs(luma - cv2.GaussianBlur(luma, (0, 0), 2))[ring].mean()
    channels = np.ascontiguousarray(colours.T)
    deciles = [quantile(channel, share) for share in (0.2, 0.5, 0.8) for channel in channels]
    return np.asarray([*deciles, 4 * grain], dtype=np.float32)


def _composition(picture: Picture) -> _Float:
    """Return where the edges are, 8 x 8 shares that add to 1, and which way they run, 8 shares likewise."""
    luma = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (128, 128), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(luma.astype(np.float32), (0, 0), 1.5)
    dx, dy = cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1)
    strength, angle = cv2.cartToPolar(dx, dy)
    turn = (angle * (8 / np.pi)).astype(np.int32) % 8
    where = cv2.resize(strength, (8, 8), interpolation=cv2.INTER_AREA).ravel()
    ways = np.bincount(turn.ravel(), strength.ravel(), minlength=8)
    return np.concatenate([where / max(where.sum(), 1e-6), ways / max(ways.sum(), 1e-6)]).astype(np.float32)


def _light(mini: Picture) -> _Float:
    """Return brightness, contrast, light from the left, light from above, and warmth; each in levels of 0 to 100."""
    lab = cv2.cvtColor(mini.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    luma = lab[:, :, 0]
    half = HASH_SIDE // 2
    sides = luma[:, :half].mean() - luma[:, half:].mean(), luma[:half].mean() - luma[half:].mean()
    return np.asarray([luma.mean(), luma.std(), *sides, lab[:, :, 2].mean()], dtype=np.float32)
