"""Pools of pictures, drawn in parallel once and kept on disk, so that a resumed build starts at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lorasmith.starter.renderer import render
from lorasmith.starter.shapes import KINDS
from lorasmith.starter.textures import dead_leaves, procedural

# Ranges of seeds, far apart: nothing measured was ever trained on.
JUDGE_SEEDS = 1_000_000_000
VAE_SEEDS = 2_000_000_000
UNET_SEEDS = 3_000_000_000
HELD_OUT_SEEDS = 4_000_000_000

Pictures = NDArray[np.uint8]
Row = dict[str, str | bool]


def picture_and_row(seed: int, size: int, kinds: tuple[str, ...], blossom: float, masks: bool) -> tuple[Pictures, Row]:
    """Draw one picture; the row holds its caption and truth. With ``masks`` the item's coverage is a fourth channel."""
    cv2.setNumThreads(1)
    drawn = render(seed, size=size, kinds=kinds, blossom=blossom)
    t = drawn.truth
    row: Row = {
        "caption": drawn.caption, "kind": t.kind, "main": t.main_colour, "second": t.second_colour,
        "background": t.background, "background_colour": t.background_colour, "blossom": t.blossom,
    }  # fmt: skip
    return (np.dstack([drawn.image, t.mask]) if masks else drawn.image), row


def _texture(seed: int, size: int) -> tuple[Pictures, Row]:
    cv2.setNumThreads(1)
    return (dead_leaves if seed % 5 < 3 else procedural)(seed, size), {}


def renders(
    folder: Path,
    name: str,
    first_seed: int,
    count: int,
    *,
    size: int = 128,
    kinds: tuple[str, ...] = tuple(KINDS),
    blossom: float = 0.0,
    masks: bool = False,
    workers: int = 2,
) -> tuple[Pictures, list[Row]]:
    """Return ``count`` renders, uint8 (count, size, size, 3), and their rows; from disk if they were drawn before.

    With ``masks`` there is a fourth channel: the item's coverage, 0 to 255.
    """
    draw = partial(picture_and_row, size=size, kinds=kinds, blossom=blossom, masks=masks)
    return _drawn(folder / f"{name}-{first_seed}-{count}-{size}", draw, first_seed, count, workers)


def textures(folder: Path, first_seed: int, count: int, *, size: int = 128, workers: int = 2) -> Pictures:
    """Return ``count`` dead-leaves and procedural pictures, uint8 (count, size, size, 3)."""
    stem = folder / f"textures-{first_seed}-{count}-{size}"
    return _drawn(stem, partial(_texture, size=size), first_seed, count, workers)[0]


def _drawn(
    stem: Path, draw: Callable[[int], tuple[Pictures, Row]], first_seed: int, count: int, workers: int
) -> tuple[Pictures, list[Row]]:
    def all_drawn() -> tuple[Pictures, list[Row]]:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            drawn = list(pool.map(draw, range(first_seed, first_seed + count), chunksize=64))
        return np.stack([image for image, _ in drawn]), [row for _, row in drawn]

    return kept(stem, all_drawn)


def kept(stem: Path, make: Callable[[], tuple[Pictures, list[Row]]]) -> tuple[Pictures, list[Row]]:
    """Return the pictures and rows that ``make`` returns; from disk if they were made before."""
    pictures, rows = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if not rows.exists():  # written last
        stem.parent.mkdir(parents=True, exist_ok=True)
        made, told = make()
        np.save(pictures, made)
        rows.write_text(json.dumps(told), encoding="utf-8")
    return np.load(pictures, mmap_mode="r"), json.loads(rows.read_text(encoding="utf-8"))


def changed(stem: Path, pictures: Pictures, change: Callable[[Pictures, int], Pictures], at_once: int = 32) -> Pictures:
    """Return what ``change`` makes of ``pictures``, part by part, each with its number; from disk if it was made."""
    file = stem.with_name(f"{stem.name}-{len(pictures)}.npy")
    if not file.exists():
        parts = [change(pictures[start : start + at_once], start) for start in range(0, len(pictures), at_once)]
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            np.save(stream, np.concatenate(parts))
        part.replace(file)
    return np.asarray(np.load(file, mmap_mode="r"))
