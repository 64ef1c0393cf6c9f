"""A large PNG that is not whole is refused by its chunks, before any of it is decoded."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.dataset import picture as module
from lorasmith.dataset.look import look
from lorasmith.dataset.picture import PictureError, open_rgb, probe
from lorasmith.dataset.png_chunks import png_damage

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def png(**options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("beside", [{}, {"dpi": (72, 72)}, {"icc_profile": b"x" * 3_000_000}])
def test_a_whole_file(beside: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(**beside) + b"what comes after the end does not matter")
    assert png_damage(path) == ""


def test_every_cut_and_every_wrong_byte_of_the_pixels_is_seen(tmp_path: Path) -> None:
    path, data = tmp_path / "a.png", png(compress_level=1)
    for length in (8, 20, 40, len(data) // 2, len(data) - 12, len(data) - 1):
        path.write_bytes(data[:length])
        assert png_damage(path)
    rng = random.Random(0)
    for _ in range(200):
        bad = bytearray(data)
        bad[rng.randrange(8, len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        # a flipped bit 5 of a name's first letter makes the chunk one that may be skipped
        assert png_damage(path) or bytes(bad).count(b"IDAT") < data.count(b"IDAT")


def test_a_large_damaged_file_is_refused_everywhere_and_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "a.png", bytearray(png())
    data[-13] ^= 1  # the checksum of the last pixels
    path.write_bytes(data)
    assert np.array_equal(open_rgb(path), PIXELS)  # Pillow does not look at it
    monkeypatch.setattr(module, "_LARGE", 100)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    for read in (open_rgb, probe, look):
        with pytest.raises(PictureError, match="a checksum in it is wrong") as caught:
            read(path)  # type: ignore[operator]
        assert caught.value.code == "damaged-picture"
