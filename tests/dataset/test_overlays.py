"""Lines and text that were drawn over pictures are found; what belongs to the picture is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from lorasmith.dataset.overlays import find_lines, find_text
from lorasmith.starter.renderer import render


def with_line(picture: np.ndarray, start: tuple[int, int], end: tuple[int, int], width: int) -> np.ndarray:
    return cv2.line(picture.copy(), start, end, (255, 0, 0), width, cv2.LINE_AA)


def with_text(picture: np.ndarray, text: str, x: int, y: int) -> np.ndarray:
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((x, y), text, (255, 255, 255), ImageFont.load_default(44))
    return np.rint(0.4 * picture + 0.6 * np.array(image)).astype(np.uint8)


@pytest.mark.parametrize(("start", "end"), [((20, 440), (480, 440)), ((40, 0), (40, 511)), ((0, 400), (300, 511))])
def test_a_line_is_found_where_it_is(start: tuple[int, int], end: tuple[int, int]) -> None:
    clean = render(5, size=512, backgrounds=("plain",)).image
    lines = [line for line in find_lines(with_line(clean, start, end, 2)) if line.confidence >= 0.5]
    assert len(lines) == 1
    truth = with_line(np.zeros_like(clean), start, end, 2).max(-1) > 0
    assert (lines[0].mask & truth).sum() > 0.9 * truth.sum()
    assert lines[0].mask.sum() < 4 * truth.sum()
    left, top, right, bottom = lines[0].box
    assert lines[0].mask[top:bottom, left:right].sum() == lines[0].mask.sum()


@pytest.mark.parametrize("background", ["plain", "tiles", "stripes", "sky"])
def test_clean_pictures_raise_no_alarm(background: str) -> None:
    for seed in range(3):
        picture = render(40 + seed, size=384, backgrounds=(background,)).image
        assert [each for each in (*find_lines(picture), *find_text(picture)) if each.confidence >= 0.5] == []


def test_text_is_found_where_it_is() -> None:
    clean = render(11, size=512, backgrounds=("plain",)).image
    marked = with_text(clean, "SAMPLE 2023", 60, 440)
    regions = [each for each in find_text(marked) if each.confidence >= 0.5]
    assert regions
    truth = np.abs(marked.astype(int) - clean).max(-1) > 4
    found = np.any([each.mask for each in regions], axis=0)
    assert (found & truth).sum() > 0.8 * truth.sum()
    assert max(each.letters for each in regions) >= 4


@pytest.mark.parametrize("shape", [(1, 1), (20, 300), (300, 20), (40, 40)])
def test_small_and_long_pictures(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    assert all(line.mask.shape == shape for line in find_lines(picture))
    assert all(text.mask.shape == shape for text in find_text(picture))
