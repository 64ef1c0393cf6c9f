"""Writes the renderer's pictures as a data set: one ImageFolder with metadata.jsonl for each kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from lorasmith.files import new_folder, write_bytes, write_text
from lorasmith.starter.renderer import BLOSSOM_PHRASES, COLOURS, Truth, article, render


def write_pictures(
    folder: Path,
    kinds: Sequence[str],
    count: int,
    *,
    seed: int,
    size: int = 128,
    blossom: float = 1.0,
    palette: Sequence[str] = tuple(COLOURS),
    blossom_size: float = 1.0,
    blossom_distance: float = 1.0,
    brief: bool = False,
) -> tuple[Path, ...]:
    """Write ``count`` pictures of each kind into a folder named after it and return those folders.

    Args:
        folder: holds the folders.
        kinds: the kinds of items.
        count: pictures of each.
        seed: decides everything.
        size: width and height in pixels.
        blossom: the probability that an item bears pink blossoms.
        palette: the colours of items to choose two from.
        blossom_size: how large the blossoms are, beside the usual.
        blossom_distance: how far apart they are, in their own size, beside the usual.
        brief: let every second caption name the kind and the blossoms alone, as short prompts do.

    Raises:
        OutputError: they cannot be written.
    """
    folders = []
    for number, kind in enumerate(kinds):
        home = new_folder(folder / kind)
        lines = []
        for index in range(count):
            drawn = render(
                seed + number * 100_000 + index, size=size, kinds=[kind], blossom=blossom, palette=palette,
                blossom_size=blossom_size, blossom_distance=blossom_distance,
            )  # fmt: skip
            name, stream = f"{index:04d}.png", BytesIO()
            Image.fromarray(drawn.image).save(stream, "PNG")
            write_bytes(home / name, stream.getvalue())
            text = _brief(drawn.truth, index // 2) if brief and index % 2 else drawn.caption
            lines.append(json.dumps({"file_name": name, "text": text}))
        write_text(home / "metadata.jsonl", "\n".join(lines) + "\n")
        folders.append(home)
    return tuple(folders)


def _brief(truth: Truth, number: int) -> str:
    phrase = f" {BLOSSOM_PHRASES[number % len(BLOSSOM_PHRASES)]}" if truth.blossom else ""
    return article(truth.kind) + phrase
