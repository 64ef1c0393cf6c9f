"""The renderer's pictures as data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from lorasmith.starter.pictures import write_pictures
from lorasmith.starter.renderer import BLOSSOM_PHRASES, render


def captions(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_pictures_and_captions_are_the_renderer_s(tmp_path: Path) -> None:
    axes, whips = write_pictures(tmp_path, ("axe", "whip"), 3, seed=7, size=32)
    assert [folder.name for folder in (axes, whips)] == ["axe", "whip"]
    for index, text in enumerate(captions(whips)):
        drawn = render(100_007 + index, size=32, kinds=["whip"], blossom=1.0)
        assert text == drawn.caption
        assert np.array_equal(np.asarray(Image.open(whips / f"{index:04d}.png")), drawn.image)


def test_every_second_caption_may_be_brief(tmp_path: Path) -> None:
    long, brief = (
        captions(write_pictures(tmp_path / str(short), ("axe",), 8, seed=7, size=32, brief=short)[0])
        for short in (False, True)
    )
    assert brief[::2] == long[::2]
    assert brief[1::2] == [f"an axe {phrase}" for phrase in BLOSSOM_PHRASES]
    plain = captions(write_pictures(tmp_path / "plain", ("axe",), 2, seed=7, size=32, blossom=0.0, brief=True)[0])
    assert plain[1] == "an axe"


def test_a_palette_bounds_the_colours_of_items(tmp_path: Path) -> None:
    palette = ("silver", "white", "brown")
    truths = [render(seed, size=32, palette=palette).truth for seed in range(40)]
    assert {t.main_colour for t in truths} == {t.second_colour for t in truths} == set(palette)
    (folder,) = write_pictures(tmp_path, ("axe",), 2, seed=7, size=32, palette=palette)
    drawn = [render(7 + index, size=32, kinds=["axe"], blossom=1.0, palette=palette) for index in range(2)]
    assert captions(folder) == [each.caption for each in drawn]


def test_blossoms_may_be_larger(tmp_path: Path) -> None:
    (folder,) = write_pictures(tmp_path, ("axe",), 1, seed=7, size=64, blossom_size=1.5, blossom_distance=1.2)
    drawn = render(7, size=64, kinds=["axe"], blossom=1.0, blossom_size=1.5, blossom_distance=1.2)
    assert np.array_equal(np.asarray(Image.open(folder / "0000.png")), drawn.image)
    assert not np.array_equal(drawn.image, render(7, size=64, kinds=["axe"], blossom=1.0).image)
