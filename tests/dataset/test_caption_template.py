from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorasmith.dataset.caption_template import DEFAULT, FIELDS, colour_words, known_words, parse_template
from lorasmith.dataset.colours import NAMES, colour_shares, colour_spread
from lorasmith.dataset.contents import Caption, Listed
from lorasmith.dataset.folder import Folder
from lorasmith.errors import RecipeError
from lorasmith.starter.renderer import COLOURS, render


def words(**known: str) -> dict[str, str]:
    return {**dict.fromkeys(FIELDS, ""), **known}


def test_a_template_is_filled_and_what_is_not_known_is_left_out() -> None:
    template = parse_template(DEFAULT)
    assert template.looks
    full = words(**{"class": "axe", "colours": "orange", "background": "plain white"})
    assert template.fill(full) == "an orange axe on a plain white background"
    assert template.fill(words(**{"class": "axe"})) == "an axe"
    assert not parse_template("[{file}, ]{class} {folder}").looks
    assert parse_template("a {color} {class}").fill(words(**{"class": "bow", "colour": "red"})) == "a red bow"


def test_everything_wrong_with_a_template_is_said_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_template("{colr} {0} [x")
    text = str(caught.value)
    assert "{colr}; did you mean {colour}?" in text
    assert "{0}" in text
    assert "bracket" in text
    assert "{background}" in text
    for bad in ("", "{class", "[a [b]]", "{class.__class__}", "a ] b"):
        with pytest.raises(RecipeError):
            parse_template(bad)


@pytest.mark.parametrize(
    ("path", "file", "folder"),
    [
        ("IMG_2034.jpg", "", ""),
        ("red-axe_03.png", "red axe", ""),
        ("old ones/BattleAxe (2).png", "battle axe", "old ones"),
        ("3f2a9c77e1.png", "", ""),
        ("épée d'or.png", "épée or", ""),
    ],
)
def test_words_of_names(tmp_path: Path, path: str, file: str, folder: str) -> None:
    home = Folder(tmp_path, "10_battle_axe")
    found = known_words(Listed(tmp_path / path, home, Caption("")), None)
    assert (found["class"], found["file"], found["folder"]) == ("battle axe", file, folder)


def test_pure_colours_have_their_names() -> None:
    for name, colour in COLOURS.items():
        pixels = np.full((50, 3), colour, dtype=np.uint8)
        assert next(iter(colour_shares(pixels))) == name
        assert colour_spread(pixels) == 0
    assert colour_shares(np.zeros((0, 3), np.uint8)) == {}
    both = np.array([(255, 0, 0)] * 30 + [(255, 255, 255)] * 70, dtype=np.uint8)
    assert colour_shares(both) == {"white": 0.7, "red": 0.3}
    assert len(set(NAMES)) == len(NAMES)


def test_the_renderers_colours_are_found() -> None:
    main = either = plain = 0
    count = 24
    for seed in range(count):
        drawn = render(70_000_000 + seed, backgrounds=("plain", "wood", "grass", "stone"))
        found, truth = colour_words(drawn.image), drawn.truth
        main += found["colour"] == truth.main_colour
        either += found["colour"] in (truth.main_colour, truth.second_colour)
        plain += (found["background"][:6] == "plain ") is (truth.background == "plain")
    assert main >= 0.75 * count
    assert either >= 0.9 * count
    assert plain >= 0.9 * count


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (300, 2), (40, 40)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    assert set(colour_words(picture)) == {"colour", "colours", "background"}
    assert set(colour_words(np.zeros((*shape, 3), np.uint8))) == {"colour", "colours", "background"}
