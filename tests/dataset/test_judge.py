"""Each finding about a picture: drawn with the fault it is found, drawn without it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from draw import blurred, busy, item, two_items, write
from PIL import Image, ImageCms

from lorasmith.dataset.contents import Caption, Listed
from lorasmith.dataset.folder import Folder
from lorasmith.dataset.judge import judge_file, judge_look, judge_name, judge_names_together
from lorasmith.dataset.measures import softness
from lorasmith.dataset.picture import Picture
from lorasmith.dataset.seen import Seen, from_json, see

RESOLUTION = 256


def listed(path: Path, folder: Path) -> Listed:
    return Listed(path, Folder(folder, "axe"), Caption("an axe"))


def codes(path: Path) -> set[str]:
    each, seen = listed(path, path.parent), see(path)
    found = [*judge_file(each, seen), *judge_look(each, seen, RESOLUTION), *judge_name(each)]
    assert all(f.file == path and f.message and f.fix for f in found)
    return {f.code for f in found}


def alpha(path: Path, clear: bool) -> None:
    array = np.dstack([busy(1), np.full((256, 256), 255, np.uint8)])
    array[:40, :, 3] = 0 if clear else 255
    Image.fromarray(array).save(path)


def with_profile(path: Path, data: bytes) -> None:
    Image.fromarray(busy(1)).save(path, icc_profile=data)


def turned(path: Path, orientation: int) -> None:
    image = Image.fromarray(busy(1))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)


def lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def other_rgb_profile() -> bytes:
    """Return sRGB's profile under another name, of the same length."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace("sRGB".encode("utf-16-be"), "Odd1".encode("utf-16-be")).replace(
        b"sRGB built-in", b"Odd1 built-in"
    )


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "wrong-suffix": ("1.png", lambda p: Image.fromarray(busy(1)).save(p, "JPEG", quality=95)),
    "alpha-used": ("1.png", lambda p: alpha(p, clear=True)),
    "alpha-unused": ("1.png", lambda p: alpha(p, clear=False)),
    "deep-colour": ("1.png", lambda p: Image.fromarray(busy(1)[..., 0].astype(np.uint16) * 256).save(p)),
    "cmyk": ("1.jpg", lambda p: Image.fromarray(busy(1)).convert("CMYK").save(p, quality=95)),
    "grey": ("1.png", lambda p: Image.fromarray(busy(1)).convert("L").save(p)),
    "bad-profile": ("1.png", lambda p: with_profile(p, b"this is no profile" * 20)),
    "colour-profile": ("1.png", lambda p: with_profile(p, other_rgb_profile())),
    "rotated": ("1.jpg", lambda p: turned(p, 6)),
}


@pytest.mark.parametrize("code", FILES)
def test_faults_of_a_file(tmp_path: Path, code: str) -> None:
    name, make = FILES[code]
    make(tmp_path / name)
    assert code in codes(tmp_path / name)


@pytest.mark.parametrize("name", ["1.png", "1.jpg", "1.webp", "1.bmp", "1.tif"])
@pytest.mark.parametrize("seed", range(3))
def test_a_clean_picture_is_clean(tmp_path: Path, name: str, seed: int) -> None:
    write(tmp_path / name, busy(seed), **({"quality": 95} if name[2:] in ("jpg", "webp") else {}))
    assert codes(tmp_path / name) == set()
    write(tmp_path / name, item(seed), **({"quality": 95} if name[2:] in ("jpg", "webp") else {}))
    assert codes(tmp_path / name) == set()


def test_a_profile_of_another_kind_is_said(tmp_path: Path) -> None:
    with_profile(tmp_path / "1.png", lab_profile())
    assert codes(tmp_path / "1.png") == {"bad-profile"}
    with_profile(tmp_path / "2.png", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert codes(tmp_path / "2.png") == set()


def bars() -> Picture:
    picture = busy(3)
    picture[:30] = 0
    picture[-30:] = 0
    return picture


def stray_line() -> Picture:
    picture = item(0, 512)
    cv2.line(picture, (10, 440), (500, 470), (250, 20, 20), 2, cv2.LINE_AA)
    return picture


def watermark() -> Picture:
    picture = busy(3, 512)
    over = picture.copy()
    cv2.putText(over, "sample.example.org", (60, 440), cv2.FONT_HERSHEY_SIMPLEX, 1.1, (255, 255, 255), 2, cv2.LINE_AA)
    return np.asarray(cv2.addWeighted(over, 0.7, picture, 0.3, 0))


def cut() -> Picture:
    return np.ascontiguousarray(item(0, 512)[: 512 * 5 // 8])


def washed_out() -> Picture:
    picture = item(0, ground=(90, 110, 130))
    picture[(picture != (90, 110, 130)).any(axis=2)] = 255
    return picture


LOOKS: dict[str, Callable[[], Picture]] = {
    "too-small": lambda: busy(1, 150),
    "slightly-small": lambda: busy(1, 230),
    "extreme-aspect": lambda: busy(1, 256, 700),
    "blurred": lambda: blurred(busy(1), 4),
    "over-exposed": washed_out,
    "under-exposed": lambda: np.asarray(busy(2) // 6, dtype=np.uint8),
    "borders": bars,
    "text": watermark,
    "lines": stray_line,
    "several-subjects": two_items,
    "cut-by-frame": cut,
}


@pytest.mark.parametrize("code", LOOKS)
def test_faults_of_what_is_shown(tmp_path: Path, code: str) -> None:
    assert code in codes(write(tmp_path / "1.png", LOOKS[code]()))


def test_figures_are_in_the_words(tmp_path: Path) -> None:
    path = write(tmp_path / "1.png", busy(1, 128, 400))
    words = {f.code: f.message for f in judge_look(listed(path, tmp_path), see(path), 256)}
    assert "400 x 128 px" in words["too-small"]
    assert "2.00 times for 256 px" in words["too-small"]
    assert "32% of it" in words["extreme-aspect"]


@pytest.mark.parametrize("sigma", [1.5, 2.5, 4.0])
def test_softness_is_the_blur_that_was_applied(sigma: float) -> None:
    found = [softness(cv2.cvtColor(blurred(busy(seed, 512), sigma), cv2.COLOR_RGB2GRAY)) for seed in range(4)]
    assert np.mean(found) == pytest.approx(sigma, rel=0.15)


def test_a_picture_without_an_edge_is_soft_and_an_empty_one_is_not(tmp_path: Path) -> None:
    assert "blurred" in codes(write(tmp_path / "1.png", blurred(busy(1), 25)))
    assert "blurred" not in codes(write(tmp_path / "2.png", np.full((256, 256, 3), 90, np.uint8)))


def test_blur_that_vanishes_when_the_picture_is_shrunk_does_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "1.png", blurred(busy(1, 1200), 3))
    assert "blurred" not in codes(path)
    assert "blurred" in {f.code for f in judge_look(listed(path, tmp_path), see(path), 1200)}


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), (200, 30, 30)])
def test_a_plain_background_is_no_fault_of_exposure_and_no_bar(tmp_path: Path, ground: tuple[int, int, int]) -> None:
    assert codes(write(tmp_path / "1.png", item(1, 256, ground))) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be made there")
@pytest.mark.parametrize("name", ["con.png", "LPT1.x.png", "a:b.png", "what?.png", "sub. /1.png", "tab\t.png"])
def test_names_that_windows_cannot_have(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, busy(1))
    assert [f.code for f in judge_name(listed(path, tmp_path))] == ["file-name"]


@pytest.mark.parametrize("name", ["console.png", "größe 1.png", "a.b-c_d.png", "nul-1.png"])
def test_names_that_are_fine(tmp_path: Path, name: str) -> None:
    assert list(judge_name(listed(tmp_path / name, tmp_path))) == []


def test_names_that_differ_by_capitals() -> None:
    folder = Path("/axe")
    group = [listed(folder / name, folder) for name in ("Axe.png", "axe.png", "ax.png", "sub/axe.png")]
    (found,) = judge_names_together(group)
    assert (found.file, found.related) == (folder / "Axe.png", (folder / "axe.png",))


def test_what_is_kept_in_the_cache_is_what_was_seen(tmp_path: Path) -> None:
    import json

    seen = see(write(tmp_path / "1.png", stray_line()))
    again = from_json(json.loads(json.dumps(seen.to_json())), seen.thumbnail)
    assert again.to_json() == seen.to_json()
    assert isinstance(again, Seen)
    np.testing.assert_array_equal(again.measures.hash, seen.measures.hash)
