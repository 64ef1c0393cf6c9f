"""New backgrounds: the subject stays, the rest changes, and the same plan makes the same choice."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from lorasmith.dataset import background as module
from lorasmith.dataset.background import (
    _rembg_session,
    blurred_behind,
    border_colour,
    compose,
    find,
    hex_of,
    make_behind,
    require_finder,
    rgb,
)
from lorasmith.dataset.plan import BackgroundSection
from lorasmith.errors import LorasmithError
from lorasmith.starter.renderer import render


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    picture = render(12, size=160, kinds=("shield",), backgrounds=("bricks",))
    return picture.image, picture.truth.mask > 127


@pytest.mark.parametrize("mode", ["blur", "plain", "gradient", "replace"])
def test_the_subject_stays_and_the_rest_is_new(drawn: tuple[np.ndarray, np.ndarray], mode: str, tmp_path: Path) -> None:
    picture, mask = drawn
    Image.fromarray(render(99, size=64).image).save(tmp_path / "b.png")
    section = BackgroundSection(mode=mode, pictures=(tmp_path / "b.png",))
    behind = make_behind(section, mode, picture, mask, "key")
    result = compose(picture, mask, behind.picture)
    far = mask.copy()
    for _ in range(4):  # well inside the edge
        far[1:-1, 1:-1] &= far[:-2, 1:-1] & far[2:, 1:-1] & far[1:-1, :-2] & far[1:-1, 2:]
    assert np.abs(result[far].astype(int) - picture[far]).mean() < 1.5
    border = np.ones_like(mask)
    border[4:-4, 4:-4] = False
    near = mask.copy()
    for _ in range(8):
        near[1:-1, 1:-1] |= near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:]
    border &= ~near
    assert border.sum() > 1000
    assert np.abs(result[border].astype(int) - behind.picture[border]).max() <= 1


def test_a_large_picture_is_composed_in_bands_that_do_not_show(
    drawn: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, mask = drawn
    behind = np.full_like(picture, 200)
    whole = compose(picture, mask, behind)
    monkeypatch.setattr(module, "_BAND", 160)  # bands of 64 rows, the least
    assert np.abs(compose(picture, mask, behind).astype(int) - whole).max() <= 1


def test_a_wide_blur_computed_small_is_the_same_blur(
    drawn: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, mask = (part.repeat(3, 0).repeat(3, 1) for part in drawn)
    small = blurred_behind(picture, mask, 34.0)
    monkeypatch.setattr(module, "_FINE", 100.0)
    assert np.abs(small.astype(int) - blurred_behind(picture, mask, 34.0)).max() <= 4


def test_a_blur_takes_no_colour_from_the_subject() -> None:
    picture = np.full((120, 120, 3), 40, np.uint8)
    mask = np.zeros((120, 120), bool)
    mask[30:90, 30:90] = True
    picture[mask] = 255
    behind = make_behind(BackgroundSection(mode="blur"), "blur", picture, mask, "key")
    assert np.abs(behind.picture.astype(int) - 40).max() <= 2


def test_choices_depend_on_the_picture_and_the_seed_only() -> None:
    colours = tuple(f"#{value:02x}0000" for value in range(0, 250, 10))
    picture, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), bool)

    def colour(key: str, seed: int) -> str:
        section = BackgroundSection(mode="plain", colours=colours, seed=seed)
        return str(make_behind(section, "plain", picture, mask, key).how["colour"])

    assert colour("a", 0) == colour("a", 0)
    assert len({colour(key, seed) for key in "abcd" for seed in range(3)}) > 4


def test_the_border_colour_is_the_usual_one_not_the_mean() -> None:
    picture = np.full((64, 64, 3), (10, 200, 30), np.uint8)
    picture[:, :10] = (250, 0, 250)
    assert border_colour(picture) == (10, 200, 30)


def test_colours_go_to_text_and_back() -> None:
    assert hex_of(rgb("#0aff80")) == "#0aff80"


def test_rembg_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(LorasmithError, match="not installed") as caught:
        require_finder("rembg")
    assert "pip install" in str(caught.value)
    require_finder("grabcut")


def test_a_model_of_rembgs_that_cannot_be_downloaded_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("rembg")

    def new_session(name: str) -> object:
        raise ConnectionError(f"no way to {name}\nand more")

    monkeypatch.setattr(fake, "new_session", new_session, raising=False)
    monkeypatch.setitem(sys.modules, "rembg", fake)
    _rembg_session.cache_clear()
    with pytest.raises(LorasmithError, match="isnet-general-use cannot be loaded") as caught:
        require_finder("rembg")
    assert "no way to isnet-general-use" in str(caught.value)
    assert "and more" not in str(caught.value)
    assert "U2NET_HOME" in str(caught.value)


def test_rembg_finds_with_one_model_for_all_pictures(
    drawn: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, mask = drawn
    fake = ModuleType("rembg")
    loaded: list[object] = []

    def new_session(name: str) -> object:
        assert name == "isnet-general-use"
        loaded.append(object())
        return loaded[-1]

    def remove(data: np.ndarray, *, session: object, only_mask: bool) -> np.ndarray:
        assert data is picture
        assert only_mask
        assert session is loaded[0]
        if broken:
            raise ValueError("no such model")
        return mask.astype(np.uint8) * 255

    broken = False
    monkeypatch.setattr(fake, "new_session", new_session, raising=False)
    monkeypatch.setattr(fake, "remove", remove, raising=False)
    monkeypatch.setitem(sys.modules, "rembg", fake)
    _rembg_session.cache_clear()
    try:
        require_finder("rembg")
        for _ in range(3):
            found = find(picture, "rembg")
            assert (found.mask == mask).all()
            assert found.confidence == 1
        assert len(loaded) == 1
        broken = True
        with pytest.raises(LorasmithError, match="no such model") as caught:
            find(picture, "rembg")
        assert "grabcut" in str(caught.value)
    finally:
        _rembg_session.cache_clear()
