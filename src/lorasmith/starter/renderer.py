"""Draws pictures of items and knows the truth about each: kind, colours, background, blossoms, mask, caption.

The starter and the judge are trained on these pictures, the demo's data set is made of them, and the tests measure
with them. A picture is a pure function of its seed and options. numpy and OpenCV only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lorasmith.starter.backgrounds import BACKGROUNDS, Colour, jitter
from lorasmith.starter.shapes import KINDS, MAIN, SECOND, Part

COLOURS: dict[str, Colour] = {
    "red": (206, 34, 40),
    "orange": (242, 132, 24),
    "yellow": (246, 218, 44),
    "green": (44, 150, 62),
    "blue": (36, 84, 206),
    "purple": (128, 48, 168),
    "brown": (122, 72, 34),
    "black": (30, 30, 34),
    "white": (244, 244, 242),
    "silver": (158, 164, 172),
}
WEAPONS = ("axe", "spear", "trident", "whip")
UNSEEN_KINDS = ("trident", "whip")  # the base is never shown these
SEEN_KINDS = tuple(kind for kind in KINDS if kind not in UNSEEN_KINDS)
BLOSSOM_PHRASES = (
    "with pink blossom patterns",
    "with pink peach blossom patterns",
    "covered in pink blossoms",
    "decorated with pink blossoms",
)
_OVERSAMPLE = 2  # the item is drawn at twice the size and area-averaged


@dataclass(frozen=True)
class Truth:
    """What is in a picture. ``mask`` is the item's coverage, uint8 (size, size), 0 to 255."""

    kind: str
    main_colour: str
    second_colour: str
    background: str
    background_colour: str
    blossom: bool
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Rendered:
    """A picture, uint8 RGB (size, size, 3), with its caption and its truth."""

    image: NDArray[np.uint8]
    caption: str
    truth: Truth


def render(
    seed: int,
    *,
    size: int = 128,
    kinds: Sequence[str] = tuple(KINDS),
    blossom: float = 0.0,
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
    palette: Sequence[str] = tuple(COLOURS),
    blossom_size: float = 1.0,
    blossom_distance: float = 1.0,
) -> Rendered:
    """Draw one picture.

    Args:
        seed: decides everything about the picture.
        size: its width and height in pixels.
        kinds: the kinds of items to choose from.
        blossom: the probability that the item bears pink blossoms.
        backgrounds: the backgrounds to choose from.
        palette: the colours of items to choose two from.
        blossom_size: how large the blossoms are, beside the usual.
        blossom_distance: how far apart they are, in their own size, beside the usual.
    """
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(kinds)))
    main, second = (str(c) for c in rng.choice(list(palette), 2, replace=False))
    background = str(rng.choice(list(backgrounds)))
    background_colour = str(rng.choice([c for c in COLOURS if c not in (main, second)]))
    flowered = bool(rng.random() < blossom)

    scene = BACKGROUNDS[background][0](rng, size, COLOURS[background_colour])
    masks = _masks(rng, KINDS[kind].draw(rng), size * _OVERSAMPLE)
    blossoms = (blossom_size, blossom_distance) if flowered else None
    item, alpha = _paint(rng, masks, COLOURS[main], COLOURS[second], blossoms)
    item = cv2.resize(item * alpha[..., None], (size, size), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(alpha, (size, size), interpolation=cv2.INTER_AREA)

    scene = scene * _shadow(rng, alpha)[..., None]
    light = rng.uniform(0.92, 1.06)
    image = (scene * (1 - alpha[..., None]) + item) * light
    truth = Truth(
        kind, main, second, background, background_colour, flowered, np.rint(alpha * 255).astype(np.uint8)
    )  # fmt: skip
    return Rendered(np.clip(np.rint(image), 0, 255).astype(np.uint8), caption(rng, truth), truth)


def _masks(rng: np.random.Generator, parts: list[Part], size: int) -> NDArray[np.float32]:
    """Place the item at random and return the coverage of its two roles, float32 (2, size, size), 0 to 1."""
    angle = np.radians(rng.uniform(-55, 55))
    scale = size / 2 * rng.uniform(0.8, 0.96)
    squeeze = rng.uniform(0.85, 1.0)
    side = -1.0 if rng.random() < 0.5 else 1.0
    shear = rng.uniform(-0.12, 0.12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[side * squeeze, shear], [0.0, 1.0]]) * scale
    placed = [part.points @ matrix.T for part in parts]
    reach = [max(part.width or (0.0,)) * scale / 2 for part in parts]  # half of a stroke's width
    low = np.min([points.min(0) - r for points, r in zip(placed, reach)], axis=0)
    high = np.max([points.max(0) + r for points, r in zip(placed, reach)], axis=0)
    # A long item turned on its diagonal still has to fit, with a little air round it.
    shrink = min(1.0, float(0.94 * size / np.max(high - low)))
    slack = np.maximum(0.0, (0.96 * size - (high - low) * shrink) / 2)
    centre = size / 2 - (low + high) / 2 * shrink + rng.uniform(-1, 1, 2) * np.minimum(slack, size * 0.07)

    masks = np.zeros((2, size, size), dtype=np.uint8)
    for part, points in zip(parts, placed):
        fixed = np.rint((points * shrink + centre) * 16).astype(np.int32)  # 4 fractional bits
        layer = np.zeros((size, size), dtype=np.uint8)
        if part.width is None:
            cv2.fillPoly(layer, [fixed], 255, cv2.LINE_AA, 4)
        else:
            widths = np.linspace(part.width[0], part.width[1], len(fixed) - 1) * scale * shrink
            for a, b, width in zip(fixed[:-1], fixed[1:], widths):
                cv2.line(layer, a.tolist(), b.tolist(), 255, max(1, round(float(width))), cv2.LINE_AA, 4)
        masks[part.role] = np.maximum(masks[part.role], layer)
        masks[1 - part.role] = np.minimum(masks[1 - part.role], 255 - layer)  # later parts lie on top
    return np.asarray(masks / 255, dtype=np.float32)


def _paint(
    rng: np.random.Generator,
    masks: NDArray[np.float32],
    main: Colour,
    second: Colour,
    blossoms: tuple[float, float] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colour and shade the item, with blossoms of some size and distance, or without.

    Returns its colours (size, size, 3), 0 to 255, and coverage (size, size), 0 to 1.
    """
    size = masks.shape[-1]
    alpha = np.minimum(masks.sum(0), 1.0)
    weight = masks / np.maximum(masks.sum(0), 1e-6)
    colours = weight[MAIN][..., None] * jitter(rng, main, 8) + weight[SECOND][..., None] * jitter(rng, second, 8)
    if blossoms:
        # A stream of its own: with and without blossoms, a seed gives the same picture otherwise.
        colours = with_blossoms(rng.spawn(1)[0], colours.astype(np.float32), alpha, *blossoms)
    angle = rng.uniform(0, 2 * np.pi)
    dx, dy = np.cos(angle), np.sin(angle)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + 0.08 * (axis[None, :] * dx + axis[:, None] * dy)
    soft = cv2.GaussianBlur(masks[MAIN] + 0.6 * masks[SECOND], (0, 0), size / 80)
    slope = cv2.Sobel(soft, cv2.CV_32F, 1, 0) * dx + cv2.Sobel(soft, cv2.CV_32F, 0, 1) * dy
    light = light + np.clip(slope * 0.35, -0.22, 0.22)  # rounded edges
    inside = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    light = light * (0.62 + 0.38 * inside)  # a darker outline
    return np.clip(colours * light[..., None], 0, 255).astype(np.float32), alpha


def with_blossoms(
    rng: np.random.Generator,
    colours: NDArray[np.float32],
    alpha: NDArray[np.float32],
    scale: float = 1.0,
    distance: float = 1.0,
) -> NDArray[np.float32]:
    """Scatter five-petalled pink flowers with yellow centres over an item; its mask cuts them off at its edge.

    Args:
        rng: chooses hue, size, number and places.
        colours: (size, size, 3), 0 to 255.
        alpha: the item's coverage, (size, size), 0 to 1.
        scale: how large they are, beside the usual.
        distance: how far apart they are, in their own size, beside the usual.
    """
    size = alpha.shape[0]
    image = np.ascontiguousarray(colours)
    ys, xs = np.nonzero(alpha > 0.9)
    if len(xs) == 0:
        return image
    petal = jitter(rng, (250, 132 + rng.uniform(-14, 34), 176 + rng.uniform(-8, 28)), 5)
    radius = size * rng.uniform(0.034, 0.05) * scale
    wanted = int(np.clip(len(xs) / (radius * radius * rng.uniform(4.5, 7.0)), 9, 70) / distance**2)
    centres: list[tuple[float, float]] = []
    for i in rng.permutation(len(xs))[: wanted * 8]:
        x, y = float(xs[i]), float(ys[i])
        if all((x - a) ** 2 + (y - b) ** 2 > (1.9 * distance * radius) ** 2 for a, b in centres):
            centres.append((x, y))
            if len(centres) == wanted:
                break
    for x, y in centres:
        r = radius * rng.uniform(0.8, 1.15)
        shade = np.clip(petal * rng.uniform(0.94, 1.04), 0, 255).tolist()
        start = rng.uniform(0, 2 * np.pi)
        for a in start + np.arange(5) * 2 * np.pi / 5:
            _disc(image, x + 0.6 * r * np.cos(a), y + 0.6 * r * np.sin(a), 0.5 * r, shade)
        _disc(image, x, y, 0.34 * r, (250, 214, 60))
    return image


def _disc(image: NDArray[np.float32], x: float, y: float, radius: float, colour: Sequence[float]) -> None:
    # OpenCV smooths edges of 8-bit pictures only; the item is area-averaged afterwards, so plain edges do.
    cv2.circle(image, (round(x * 16), round(y * 16)), round(radius * 16), list(colour), -1, cv2.LINE_8, 4)


def _shadow(rng: np.random.Generator, alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a soft shadow of the item leaves of the light, float32 (size, size), 0 to 1."""
    size = alpha.shape[0]
    dx, dy = rng.uniform(-0.04, 0.04, 2) * size
    moved = cv2.warpAffine(alpha, np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float32), (size, size))
    soft = cv2.GaussianBlur(moved, (0, 0), size * rng.uniform(0.012, 0.03))
    return np.asarray(1 - soft * rng.uniform(0.1, 0.45), dtype=np.float32)


def article(word: str) -> str:
    """Return ``word`` with "a" or "an" before it."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def background_phrase(rng: np.random.Generator, background: str, colour: str) -> str:
    """Return words for a background, such as "on a wooden table"."""
    phrases = BACKGROUNDS[background][1]
    phrase = phrases[int(rng.integers(len(phrases)))]
    return phrase.format(colour=colour).replace("a orange", "an orange")


def caption(rng: np.random.Generator, truth: Truth) -> str:
    """Return true words about a picture, in one of several wordings; some say less than all."""
    kind, main, second = truth.kind, truth.main_colour, truth.second_colour
    names = KINDS[kind]
    coloured = article(f"{main} {kind}")
    subject = (
        f"{coloured} with {article(f'{second} {names.second}')}",
        f"{article(kind)}, {main} {names.main}, {second} {names.second}",
        coloured,
        f"a photo of {coloured}",
        f"a picture of {coloured}, {second} {names.second}",
        article(kind),
    )[int(rng.choice(6, p=(0.4, 0.15, 0.2, 0.1, 0.1, 0.05)))]
    parts = [subject]
    if truth.blossom:
        parts.append(BLOSSOM_PHRASES[int(rng.integers(len(BLOSSOM_PHRASES)))])
    if rng.random() < 0.85:
        parts.append(background_phrase(rng, truth.background, truth.background_colour))
    return " ".join(parts)
