"""Real files of every odd kind, written here, through open_rgb and probe."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lorasmith.dataset import picture as module
from lorasmith.dataset.finding import KINDS
from lorasmith.dataset.picture import TURNS, PictureError, open_rgb, probe, turned

Image.init()
needs_avif = pytest.mark.skipif("AVIF" not in Image.OPEN, reason="this Pillow reads no AVIF")
WIDTH, HEIGHT = 24, 16


def photo() -> Image.Image:
    """A smooth picture whose four corners differ, so that any turn or lost channel shows."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), np.full_like(x, 90)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def read_bytes(tmp_path: Path, data: bytes, name: str = "1.png") -> np.ndarray:
    (tmp_path / name).write_bytes(data)
    return open_rgb(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "tga", "ppm", "webp"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"1.{suffix}"
    photo().save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(open_rgb(path), np.asarray(photo()))
    assert (probe(path).width, probe(path).height) == (WIDTH, HEIGHT)


def test_a_jpeg_under_a_png_name_is_a_jpeg(tmp_path: Path) -> None:
    photo().save(tmp_path / "1.png", "JPEG")
    assert probe(tmp_path / "1.png").format == "JPEG"
    assert open_rgb(tmp_path / "1.png").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp", pytest.param("avif", marks=needs_avif)])
def test_a_rotated_photo_stands_upright_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's number of the turn that undoes it
    stored = photo() if orientation == 1 else photo().transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"1.{suffix}"
    lossy = {"quality": 100, "subsampling": 0 if suffix == "jpg" else "4:4:4"}
    stored.save(path, exif=exif, **(lossy if suffix in ("jpg", "avif") else {"lossless": True}))
    upright = open_rgb(path)
    assert upright.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(upright.astype(int) - np.asarray(photo())).mean() < 4
    assert (probe(path).width, probe(path).height) == (WIDTH, HEIGHT)


def test_damaged_exif_loses_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    photo().save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert open_rgb(path).shape == (HEIGHT, WIDTH, 3)


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("1.png", "1.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        assert open_rgb(tmp_path / name)[0].tolist() == [[v, v, v] for v in (0, 1, 128, 255)]


def test_sixteen_bit_colour_and_alpha_are_scaled(tmp_path: Path) -> None:
    orange = b"\0" + struct.pack(">3H", 65535, 32896, 0)
    assert read_bytes(tmp_path, png(1, 1, 16, 2, orange)).tolist() == [[[255, 128, 0]]]
    half = b"\0" + struct.pack(">4H", 0, 0, 0, 32896)
    assert abs(int(read_bytes(tmp_path, png(1, 1, 16, 6, half))[0, 0, 0]) - 127) <= 1
    grey = b"\0" + struct.pack(">2H", 32896, 65535)
    assert read_bytes(tmp_path, png(1, 1, 16, 4, grey)).tolist() == [[[128, 128, 128]]]


def test_sixteen_bit_pgm_and_white_is_zero_tiff(tmp_path: Path) -> None:
    dim = read_bytes(tmp_path, b"P5 2 1 65535\n" + struct.pack(">2H", 200, 65535), "1.pgm")
    assert dim[0, :, 0].tolist() == [1, 255]
    dark = read_bytes(tmp_path, b"P5 2 1 65535\n" + struct.pack(">2H", 0, 257), "2.pgm")
    assert dark[0, :, 0].tolist() == [0, 1], "a dark picture is not brightened"
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "1.tiff", tiffinfo={262: 0})
    assert open_rgb(tmp_path / "1.tiff")[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([-5.0, 32896.0, 65535.0], [0, 128, 255]),
        ([0.0, 50000.0, 100000.0], [0, 128, 255]),
        ([float("nan"), float("inf"), 1.0], [0, 0, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_float_tiff(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "1.tiff")
    assert open_rgb(tmp_path / "1.tiff")[0, :, 0].tolist() == expected


def test_thirty_two_bit_integers(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 255]], dtype=np.int32)).save(tmp_path / "1.tiff")
    assert open_rgb(tmp_path / "1.tiff")[0, :, 0].tolist() == [0, 128, 255]


def test_a_deep_picture_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "1.png", exif=exif)
    assert open_rgb(tmp_path / "1.png")[:, 0, 0].tolist() == [0, 255]
    assert (probe(tmp_path / "1.png").width, probe(tmp_path / "1.png").height) == (1, 2)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    def corner(image: Image.Image, name: str = "1.png", **options: object) -> list[int]:
        image.save(tmp_path / name, **options)
        return [int(v) for v in open_rgb(tmp_path / name)[0, 0]]

    assert corner(Image.new("RGBA", (2, 2), (10, 20, 30, 0))) == [255, 255, 255]
    assert corner(Image.new("RGBA", (2, 2), (10, 20, 30, 255))) == [10, 20, 30]
    assert corner(Image.new("RGBA", (2, 2), (0, 0, 0, 51))) == [204, 204, 204]
    assert corner(Image.new("LA", (2, 2), (0, 51))) == [204, 204, 204]
    assert corner(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)) == [255, 255, 255]
    assert corner(Image.new("L", (2, 2), 7), transparency=7) == [255, 255, 255]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert corner(palette) == [200, 0, 0]
    assert corner(palette, transparency=1) == [255, 255, 255]
    assert corner(palette, transparency=bytes([255, 51])) == [244, 204, 204]
    assert corner(palette, "1.gif", transparency=1) == [255, 255, 255]
    assert corner(Image.new("1", (2, 2), 1)) == [255, 255, 255]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "1.jpg", quality=100)
    red, green, blue = open_rgb(tmp_path / "1.jpg")[8, 8]
    assert red > 200
    assert green < 60
    assert blue < 60


def test_a_colour_profile_is_applied_and_a_damaged_one_is_ignored(tmp_path: Path) -> None:
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    name, other = ("sRGB".encode("utf-16-be"), "Test".encode("utf-16-be"))
    for old, new in ((name, other), (b"rXYZ", b"tmp_"), (b"bXYZ", b"rXYZ"), (b"tmp_", b"bXYZ")):
        swapped = swapped.replace(old, new)
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    red.save(tmp_path / "1.png", icc_profile=swapped)
    assert open_rgb(tmp_path / "1.png")[0, 0].argmax() == 2, "this profile says that red is blue"
    for data in (b"garbage", swapped[:200]):
        red.save(tmp_path / "2.png", icc_profile=data)
        assert open_rgb(tmp_path / "2.png")[0, 0].tolist() == [255, 0, 0]


def animation(path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def bomb(path: Path) -> None:
    path.write_bytes(png(60_000, 60_000, 8, 2, b"\0" * 100))


def big(path: Path) -> None:
    path.write_bytes(png(12_000, 12_000, 8, 0, b"\0" * 100))  # over our limit, under Pillow's


def cut(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG" if path.suffix == ".jpg" else None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path: Path) -> None:
    path.write_text("this is not a picture, whatever it is called\n" * 10)


def shell_script_as_eps(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize(
    ("name", "write", "code"),
    [
        ("1.gif", animation, "animated"),
        ("1.webp", animation, "animated"),
        ("1.png", animation, "animated"),
        ("1.png", bomb, "too-many-pixels"),
        ("1.png", big, "too-many-pixels"),
        ("1.png", cut, "damaged-picture"),
        ("1.jpg", cut, "damaged-picture"),
        ("1.tiff", cut, "damaged-picture"),
        ("1.webp", cut, "damaged-picture"),
        ("1.png", text, "not-a-picture"),
        ("1.tga", text, "not-a-picture"),
        ("1.png", shell_script_as_eps, "not-a-picture"),
        ("1.heic", text, "unsupported-format"),
        ("1.png", Path.touch, "empty-file"),
        ("1.png", Path.mkdir, "unreadable-file"),
        ("1.png", lambda path: None, "unreadable-file"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path: Path, name: str, write: Callable[[Path], object], code: str) -> None:
    path = tmp_path / name
    write(path)
    for read in (probe, open_rgb):
        with pytest.raises(PictureError) as caught:
            read(path)
        assert caught.value.code == code
        assert name in caught.value.what
        assert caught.value.where == str(path)
        assert caught.value.fix == KINDS[code].fix


def test_what_can_be_decoded_small_may_be_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.png", "1.jpg", "1.webp", "1.tiff"):
        Image.new("RGB", (60, 50)).save(tmp_path / name)
    monkeypatch.setattr(module, "WHOLE_PIXELS", 3000)
    assert all(probe(path).width == 60 for path in tmp_path.iterdir())
    monkeypatch.setattr(module, "WHOLE_PIXELS", 2999)
    assert probe(tmp_path / "1.jpg").width == 60
    for name in ("1.png", "1.webp", "1.tiff"):
        with pytest.raises(PictureError, match="60 x 50 pixels") as caught:
            probe(tmp_path / name)
        assert caught.value.code == "too-many-pixels"
    monkeypatch.setattr(module, "MAX_PIXELS", 2999)
    with pytest.raises(PictureError, match="60 x 50 pixels"):
        open_rgb(tmp_path / "1.jpg")


def test_a_camera_s_picture_is_within_the_limit_whatever_its_format() -> None:
    assert module.WHOLE_PIXELS > 8256 * 5504  # 45 megapixels
    assert module.MAX_PIXELS > 12_032 * 9024  # a telephone's 108


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(PictureError, match="not a file"):
        open_rgb(tmp_path / "1.png")


def test_a_phones_multi_picture_jpeg_is_its_first_picture(tmp_path: Path) -> None:
    photo().save(tmp_path / "1.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert probe(tmp_path / "1.jpg").format == "MPO"
    assert open_rgb(tmp_path / "1.jpg").shape == (HEIGHT, WIDTH, 3)


def test_pages_of_a_tiff_are_counted_and_a_gif_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "1.tiff", save_all=True, append_images=pages[1:])
    assert probe(tmp_path / "1.tiff").pages == 2
    assert open_rgb(tmp_path / "1.tiff")[0, 0].tolist() == [255, 0, 0]
    pages[0].save(tmp_path / "1.gif")
    assert probe(tmp_path / "1.gif").pages == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "bmp", "tga", "ppm"])
def test_flipped_bytes_raise_nothing_but_picture_errors(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(suffix)
    path = tmp_path / f"1.{suffix}"
    exif = Image.Exif()
    exif[274] = 6
    photo().save(path, exif=exif)
    good = path.read_bytes()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data)
        try:
            info = probe(path)
            shape = open_rgb(path).shape
        except PictureError as error:
            assert error.code in KINDS
        else:
            assert shape == (info.height, info.width, 3)


@pytest.mark.parametrize("turn", range(1, 9))
def test_arrays_are_turned_as_pillow_turns_pictures(turn: int) -> None:
    expected = photo() if turn == 1 else photo().transpose(TURNS[turn])
    assert np.array_equal(turned(np.asarray(photo()), turn), np.asarray(expected))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "F", "transparent colour"])
def test_a_picture_read_in_bands_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    path, options = tmp_path / "1.tiff", {}
    if mode == "transparent colour":
        image, path, options = photo().quantize(16), tmp_path / "1.png", {"transparency": 3}
    elif mode == "I;16":
        image = Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 170)
    else:
        image = photo().convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.info["icc_profile"] = b""
    image.save(path, **options)
    whole = open_rgb(path)
    monkeypatch.setattr(module, "_BAND", 5 * WIDTH)
    assert np.array_equal(open_rgb(path), whole)
