"""Lines and text drawn over pictures, with the truth of where they are; for the measurements of ``curate``."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

WORDS = (
    "SAMPLE", "stock photo", "(c) 2023", "www.example.com", "Watermark", "PREVIEW", "ArtDepot", "do not copy",
    "photos4u", "Shutter 123",
)  # fmt: skip
LINE_COLOURS = ((255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255), (255, 255, 0))
TEXT_COLOURS = ((255, 255, 255), (255, 255, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128))
HERSHEY = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)


def _blend(picture: Picture, cover: Picture, colour: tuple[int, int, int], alpha: float) -> tuple[Picture, Mask]:
    share = (cover.astype(np.float32) / 255 * alpha)[..., None]
    mixed = picture * (1 - share) + np.array(colour, np.float32) * share
    made = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return made, np.asarray(cover > 8, dtype=bool)


def add_line(rng: np.random.Generator, picture: Picture) -> tuple[Picture, Mask]:
    """Draw one straight line of 1 to 3 pixels, 0.35 to 1.2 of the side long, 60 to 100 % opaque."""
    height, width = picture.shape[:2]
    angle = np.radians(float(rng.choice([0.0, 90.0, rng.uniform(0, 180)])))
    centre = rng.uniform(0.1, 0.9, 2) * (width, height)
    half = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.35, 1.2) * width / 2
    cover = np.zeros((height, width), np.uint8)
    a, b = (np.rint(p * 16).astype(int).tolist() for p in (centre - half, centre + half))
    cv2.line(cover, a, b, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
    return _blend(picture, cover, LINE_COLOURS[rng.integers(len(LINE_COLOURS))], float(rng.uniform(0.6, 1)))


def add_text(rng: np.random.Generator, picture: Picture) -> tuple[Picture, Mask]:
    """Draw one line of text, 35 to 80 % opaque, a third of them slanted, in one of four fonts."""
    height, width = picture.shape[:2]
    word, size = WORDS[rng.integers(len(WORDS))], float(rng.uniform(0.045, 0.12)) * height
    cover = (_hershey if rng.random() < 0.4 else _truetype)(rng, word, size, height, width)
    if rng.random() < 0.35:
        angle = float(rng.choice([30, -30, 45, -45, rng.uniform(-60, 60)]))
        ys, xs = np.nonzero(cover)
        centre = (float(xs.mean()), float(ys.mean()))
        turn = cv2.getRotationMatrix2D(centre, angle, 1)
        turn[:, 2] += np.array([width / 2, height / 2]) - centre
        cover = np.asarray(cv2.warpAffine(cover, turn, (width, height)), dtype=np.uint8)
    return _blend(picture, cover, TEXT_COLOURS[rng.integers(len(TEXT_COLOURS))], float(rng.uniform(0.35, 0.8)))


def _hershey(rng: np.random.Generator, word: str, size: float, height: int, width: int) -> Picture:
    font, thick = HERSHEY[rng.integers(len(HERSHEY))], max(1, round(size / 10))
    scale = cv2.getFontScaleFromHeight(font, int(size * 0.7), thick)
    (wide, tall), _ = cv2.getTextSize(word, font, scale, thick)
    if wide > 0.95 * width:
        scale *= 0.95 * width / wide
        (wide, tall), _ = cv2.getTextSize(word, font, scale, thick)
    cover = np.zeros((height, width), np.uint8)
    x = int(rng.uniform(0.02 * width, max(0.02 * width + 1, 0.98 * width - wide)))
    y = int(rng.uniform(tall + 0.02 * height, 0.95 * height))
    cv2.putText(cover, word, (x, y), font, scale, 255, thick, cv2.LINE_AA)
    return cover


def _truetype(rng: np.random.Generator, word: str, size: float, height: int, width: int) -> Picture:
    font = ImageFont.load_default(size)
    wide = font.getlength(word)
    if wide > 0.95 * width:
        font = ImageFont.load_default(size * 0.95 * width / wide)
        wide = font.getlength(word)
    image = Image.new("L", (width, height))
    x = float(rng.uniform(0.02 * width, max(0.02 * width + 1, 0.98 * width - wide)))
    y = float(rng.uniform(0.02 * height, 0.95 * height - size))
    ImageDraw.Draw(image).text((x, y), word, 255, font)
    return np.array(image)
