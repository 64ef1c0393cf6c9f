"""Put something else behind a subject: a blur of what was there, a colour, a gradient, or another picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.bucket import fit
from lorasmith.dataset.picture import open_rgb
from lorasmith.dataset.plan import BackgroundSection
from lorasmith.dataset.subject import Subject, find_subject, ring_mask, subject_of
from lorasmith.errors import LorasmithError

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
_Float = npt.NDArray[np.float32]

_FINE = 8.0  # pixels of sigma that a blur has at least in the copy it is computed on
_BAND = 4_000_000  # pixels that are laid on a background at once
_REMBG_MODEL = "isnet-general-use"  # named, so that another version of rembg does not choose another


@dataclass(frozen=True)
class Behind:
    """A new background, uint8 RGB (height, width, 3), and how it was made, for the ledger."""

    picture: Picture
    how: dict[str, Any]


def find(picture: Picture, finder: str) -> Subject:
    """Return the subject of a picture as the plan's finder sees it.

    Raises:
        LorasmithError: rembg is asked for and not installed, or fails.
    """
    return _by_rembg(picture) if finder == "rembg" else find_subject(picture)


def require_finder(finder: str) -> None:
    """Refuse early where rembg is asked for and is not installed, or has no model and cannot download it.

    Raises:
        LorasmithError: it cannot be used.
    """
    if finder == "rembg":
        try:
            import rembg  # noqa: F401
        except (ImportError, SystemExit) as error:  # rembg ends the program where onnxruntime is missing
            raise LorasmithError(
                'The plan asks for background.finder = "rembg", which is not installed.',
                fix='Install it with: pip install "rembg[cpu]"; or take "grabcut", which needs nothing.',
            ) from error
        try:
            _rembg_session()  # here, where there is one thread; two would download it twice, into one file
        except Exception as error:  # it downloads a model and loads it: anything may happen
            raise LorasmithError(
                f"rembg's model {_REMBG_MODEL} cannot be loaded.",
                where=(str(error).strip().splitlines() or [type(error).__name__])[0][:200],
                fix="It is downloaded when first used: connect to the network once, or copy the folder of rembg's "
                'models from another machine and name it in U2NET_HOME. "grabcut" needs no model.',
            ) from error


def _by_rembg(picture: Picture) -> Subject:
    import rembg

    try:
        found = np.asarray(rembg.remove(picture, session=_rembg_session(), only_mask=True))
    except Exception as error:  # it downloads a model and runs it: anything may happen
        raise LorasmithError(f"rembg failed: {error}.", fix='Use background.finder = "grabcut".') from error
    found = found if found.ndim == 2 else found[..., -1]
    unsure = float((np.abs(found.astype(np.float32) - 127.5) < 90).mean())
    return subject_of(found > 127, confidence=float(np.clip(1 - 4 * unsure, 0, 1)))


@lru_cache(maxsize=1)
def _rembg_session() -> Any:
    """Return rembg's model, loaded once; by itself rembg loads it for every picture."""
    import rembg

    return rembg.new_session(_REMBG_MODEL)


def border_colour(picture: Picture, known: Mask | None = None) -> tuple[int, int, int]:
    """Return the colour that is most usual along a picture's border, or along that of its ``known`` pixels.

    Args:
        picture: uint8 RGB (height, width, 3).
        known: bool (height, width), where the picture's colours count.
    """
    ring = ring_mask(picture.shape)
    if known is not None:
        ring = (ring & known) if (ring & known).sum() >= 16 else known
    pixels = picture[ring]
    if not len(pixels):
        return (255, 255, 255)
    cells = (pixels >> 4).astype(np.int64) @ np.array([256, 16, 1])
    most = pixels[cells == np.bincount(cells).argmax()]
    red, green, blue = np.median(most, axis=0).astype(int).tolist()
    return red, green, blue


def make_behind(section: BackgroundSection, mode: str, picture: Picture, mask: Mask, key: str) -> Behind:
    """Return the background that a plan asks for.

    Args:
        section: the plan's words on backgrounds.
        mode: blur, plain, gradient or replace.
        picture: uint8 RGB (height, width, 3).
        mask: bool (height, width), true on the subject.
        key: decides among several colours or pictures, so that the choice is the same on every run.

    Raises:
        PictureError: a background picture cannot be used.
    """
    height, width = mask.shape
    rng = random.Random(f"{section.seed}:{key}")
    if mode == "blur":
        sigma = section.blur * max(height, width)
        return Behind(blurred_behind(picture, mask, sigma), {"sigma": round(sigma, 2)})
    if mode == "replace":
        path = section.pictures[rng.randrange(len(section.pictures))]
        return Behind(fit(open_rgb(path), (width, height), flip=rng.random() < 0.5), {"picture": path.name})
    own = border_colour(picture, ~mask)
    colours = [rgb(text) for text in section.colours] or [own]
    if mode == "plain":
        colour = colours[rng.randrange(len(colours))]
        return Behind(np.full_like(picture, colour), {"colour": hex_of(colour)})
    first, second = _two(colours, rng)
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    shades = np.array(first, np.float32) * (1 - ramp) + np.array(second, np.float32) * ramp
    made = np.broadcast_to(np.rint(shades).astype(np.uint8), picture.shape)
    return Behind(np.ascontiguousarray(made), {"colours": [hex_of(first), hex_of(second)]})


def _two(colours: Sequence[tuple[int, int, int]], rng: random.Random) -> list[tuple[int, int, int]]:
    if len(colours) > 1:
        return rng.sample(list(colours), 2)
    only = colours[0]
    toward = 255 if sum(only) < 384 else 0
    red, green, blue = (round(c + 0.3 * (toward - c)) for c in only)
    return [(red, green, blue), only]


def blurred_behind(picture: Picture, mask: Mask, sigma: float) -> Picture:
    """Return the background alone, blurred; the subject's colours do not run into it.

    The blur of the picture without the subject, divided by the blur of where it is known (normalised convolution,
    Knutsson and Westin, CVPR 1993). Where the subject is wider than the blur, coarser blurs fill in.
    """
    height, width = mask.shape
    step = max(1, int(sigma / _FINE))  # a wide blur leaves nothing that a smaller copy could not hold
    size = max(1, width // step), max(1, height // step)
    sure = ~cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    known = cv2.resize(sure.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    colours = cv2.resize(picture * sure[..., None], size, interpolation=cv2.INTER_AREA).astype(np.float32)
    sigma /= step
    result = np.zeros_like(colours)
    left = np.ones(known.shape, dtype=np.float32)
    for factor in (1, 4, 16):
        weight = cv2.GaussianBlur(known, (0, 0), sigma * factor, borderType=cv2.BORDER_REFLECT)
        share = np.clip(weight * 8, 0, 1) * left
        if factor == 16:
            share = left
        soft = cv2.GaussianBlur(colours, (0, 0), sigma * factor, borderType=cv2.BORDER_REFLECT)
        blurred = soft / np.maximum(weight, 1e-4)[..., None]
        result += blurred * share[..., None]
        left = left - share
        if left.max() < 1e-3:
            break
    if step == 1:
        return np.asarray(np.clip(np.rint(result), 0, 255), dtype=np.uint8)
    return np.asarray(cv2.resize(np.asarray(np.clip(np.rint(result), 0, 255), np.uint8), (width, height)))


def compose(picture: Picture, mask: Mask, behind: Picture) -> Picture:
    """Return the subject of a picture on another background, with soft edges that keep no halo of the old one.

    The mask's edge is laid on the picture's with a guided filter (He, Sun and Tang, PAMI 2013); colours along the
    edge are taken from inside the subject.

    Args:
        picture: uint8 RGB (height, width, 3).
        mask: bool (height, width), true on the subject.
        behind: uint8 RGB (height, width, 3).
    """
    height, width = mask.shape
    rows, halo = max(64, _BAND // width), 4 * max(2, round(max(mask.shape) / 170)) + 8
    if rows >= height:
        return _composed(picture, mask, behind, max(mask.shape))
    made = np.empty_like(picture)
    for top in range(0, height, rows):  # what is more than a halo away has no influence
        start, end = max(0, top - halo), min(height, top + rows + halo)
        part = _composed(picture[start:end], mask[start:end], behind[start:end], max(mask.shape))
        made[top : top + rows] = part[top - start : top - start + rows]
    return made


def _composed(picture: Picture, mask: Mask, behind: Picture, side: int) -> Picture:
    alpha = soft_edge(picture, mask, side)
    radius = max(2, round(side / 170))
    core = (alpha > 0.95).astype(np.float32)
    size = (2 * radius + 1, 2 * radius + 1)
    weight = cv2.boxFilter(core, -1, size)
    inside = cv2.boxFilter(picture.astype(np.float32) * core[..., None], -1, size) / np.maximum(weight, 1e-4)[..., None]
    edge = (alpha > 0) & (alpha < 0.95) & (weight > 0.01)
    front = picture.astype(np.float32)
    front[edge] = inside[edge]
    mixed = front * alpha[..., None] + behind.astype(np.float32) * (1 - alpha[..., None])
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def soft_edge(picture: Picture, mask: Mask, side: int) -> _Float:
    """Return the mask's coverage with its edge laid on the picture's, float32 (height, width), 0 to 1.

    ``side`` is the longer side of the whole picture, by which the width of the edge goes.
    """
    guide = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    target = mask.astype(np.float32)
    radius = max(1, round(side / 256))
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(values: _Float) -> _Float:
        return np.asarray(cv2.boxFilter(values, -1, size), dtype=np.float32)

    guide_mean, target_mean = mean(guide), mean(target)
    variance = mean(guide * guide) - guide_mean**2
    slope = (mean(guide * target) - guide_mean * target_mean) / (variance + 1e-4)
    shift = target_mean - slope * guide_mean
    soft = np.clip(mean(slope) * guide + mean(shift), 0, 1)
    return np.asarray(np.clip((soft - 0.1) / 0.8, 0, 1), dtype=np.float32)


def rgb(text: str) -> tuple[int, int, int]:
    """Return the colour that ``#rrggbb`` says."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def hex_of(colour: Sequence[int]) -> str:
    """Return a colour as ``#rrggbb``."""
    return "#" + "".join(f"{int(c):02x}" for c in colour)
