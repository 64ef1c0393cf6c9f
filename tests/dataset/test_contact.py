"""Before/after sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lorasmith.dataset.contact import Change, Sheets, full_size, small, thumbnail


def change(operation: str, side: int = 300) -> Change:
    before = np.full((side, side, 3), 10, np.uint8)
    return Change(operation, "axe/1.png", before, before + 200, ((10, 10, 50, 50),))


def test_pages_are_written_as_they_fill_and_at_the_end(tmp_path: Path) -> None:
    sheets = Sheets(tmp_path / "sheets")
    for _ in range(25):
        sheets.add(small(change("crop")))
    sheets.add(small(change("lines")))
    assert [path.name for path in sheets.written] == ["crop-01.png"]
    assert [path.name for path in sheets.finish()] == ["crop-01.png", "crop-02.png", "lines-01.png"]
    for path in sheets.written:
        with Image.open(path) as image:
            pixels = np.array(image)
        assert (pixels == 10).all(-1).any() and (pixels == 210).all(-1).any()


def test_nothing_to_show_makes_no_folder(tmp_path: Path) -> None:
    assert Sheets(tmp_path / "sheets").finish() == ()
    assert not (tmp_path / "sheets").exists()


def test_thumbnails_fit_and_small_pictures_are_not_enlarged() -> None:
    assert max(thumbnail(np.zeros((900, 300, 3), np.uint8)).shape) == 224
    assert thumbnail(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30, 3)


def test_full_size_holds_every_pixel_of_before_and_after() -> None:
    one = Change("crop", "x", np.full((50, 40, 3), 9, np.uint8), np.full((30, 20, 3), 77, np.uint8))
    sheet = full_size([one], one.after)
    assert (sheet == 9).all(-1).sum() >= 2000
    assert (sheet == 77).all(-1).sum() >= 600
