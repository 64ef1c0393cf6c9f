"""Plain PNG files are decoded fast, and come out as Pillow decodes them; everything else is left to Pillow."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draw import busy, write
from PIL import Image, PngImagePlugin

from lorasmith.dataset import look as looking
from lorasmith.dataset.look import look
from lorasmith.dataset.picture import PictureError
from lorasmith.dataset.png import plain_pixels


def picture(width: int = 53, height: int = 37, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def fast(data: bytes, folder: Path) -> np.ndarray | None:
    path = folder / "picture.png"
    path.write_bytes(data)
    with Image.open(path) as image:
        found = plain_pixels(image, path)
    assert found is None or found[1] == data
    return None if found is None else found[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_pixels_are_as_pillow_decodes_them(mode: str, level: int, tmp_path: Path) -> None:
    image = picture().convert(mode)
    if mode == "RGBA":
        image.putalpha(picture(seed=1).convert("L"))
    pixels = fast(encoded(image, compress_level=level), tmp_path)
    assert pixels is not None
    assert np.array_equal(pixels, np.asarray(image))


def test_what_stands_beside_the_pixels_changes_nothing(tmp_path: Path) -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", "an axe")
    profile = Path(__file__).name.encode()  # nothing reads it here
    data = encoded(picture(), pnginfo=told, dpi=(72, 72), icc_profile=profile)
    gamma = data[:33] + chunk(b"gAMA", struct.pack(">I", 100_000)) + data[33:]
    for each in (data, gamma):
        assert np.array_equal(fast(each, tmp_path), np.asarray(picture()))  # type: ignore[arg-type]


def test_other_files_are_left_to_pillow(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>')
    plain = encoded(picture())
    late = plain[:-12] + chunk(b"tEXt", b"Comment\0late") + plain[-12:]
    others = {
        "palette": encoded(picture().convert("P")),
        "grey": encoded(picture().convert("L")),
        "one bit": encoded(picture().convert("1")),
        "16 bits": encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))),
        "one colour clear": encoded(picture(), transparency=(1, 2, 3)),
        "turned by EXIF": encoded(picture(), exif=exif),
        "turned by XMP": encoded(picture(), pnginfo=xmp),
        "animated": encoded(picture(), save_all=True, append_images=[picture(seed=1)]),
        "said after the pixels": late,
        "without an end": plain[:-12],
        "more bytes than pixels can take": plain[:33] + chunk(b"tEXt", b"Comment\0" + bytes(90_000)) + plain[33:],
    }
    assert [name for name, data in others.items() if fast(data, tmp_path) is not None] == []
    jpeg = tmp_path / "picture.jpg"
    picture().save(jpeg)
    with Image.open(jpeg) as image:
        assert plain_pixels(image, jpeg) is None


def test_nothing_is_taken_that_pillow_refuses(tmp_path: Path) -> None:
    whole, rng = encoded(picture(), compress_level=6), random.Random(0)
    taken = 0
    for _ in range(400):
        data = bytearray(whole)
        place = rng.randrange(8, len(data))
        if rng.random() < 0.3:
            del data[place:]
        elif rng.random() < 0.2:
            del data[place : place + rng.randrange(1, 20)]
        else:
            data[place] ^= 1 << rng.randrange(8)
        try:
            pixels = fast(bytes(data), tmp_path)
        except Exception:  # Pillow does not even open it
            continue
        if pixels is not None:
            taken += 1
            assert np.array_equal(
                pixels, np.asarray(Image.open(io.BytesIO(data)).convert(f"RGB{'A' * (pixels.shape[2] - 3)}"))
            )
    assert taken < 40


@pytest.mark.parametrize("side", [40, 500, 1000, 1601])
def test_a_look_sees_the_same_either_way(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opaque = write(tmp_path / "opaque.png", busy(1, side))
    clear = Image.fromarray(busy(2, side)).convert("RGBA")
    clear.putalpha(Image.fromarray(busy(3, side)).convert("L"))
    clear.save(tmp_path / "clear.png")
    quick = [look(opaque), look(tmp_path / "clear.png")]
    monkeypatch.setattr(looking, "plain_pixels", lambda *_: None)
    for one, other in zip(quick, [look(opaque), look(tmp_path / "clear.png")]):
        assert (one.info, one.orientation, one.bits, one.profile) == (other.info, 1, 8, "")
        assert one.transparent == other.transparent
        assert one.picture.shape == other.picture.shape
        away = np.abs(one.picture.astype(int) - other.picture)
        assert away.mean() < (0.05 if side != 1601 else 2)  # of what no whole fraction divides, a last pixel is cut off


def test_a_damaged_file_is_told_of_as_pillow_tells(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(picture(400, 300))[:-5000])
    with pytest.raises(PictureError) as refused:
        look(path)
    assert refused.value.code == "damaged-picture"
