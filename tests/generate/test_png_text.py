from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lorasmith.generate.png_text import LoraNote, parameters_text, parse_parameters, png_bytes
from lorasmith.generate.sample import Request
from lorasmith.generate.samplers import SAMPLERS


def test_the_text_is_the_web_uis() -> None:
    request = Request("an axe", "blurry", seed=1, steps=25, guidance=7.5)
    text = parameters_text(request, (512, 448), "starter", "0123456789abcdef", [LoraNote("weapons", 0.8, "f" * 64)])
    assert text.split("\n")[:2] == ["an axe <lora:weapons:0.8>", "Negative prompt: blurry"]
    assert text.split("\n")[2].startswith(
        "Steps: 25, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 1, Size: 512x448, Model hash: 0123456789, Model: starter, "
        'Lora hashes: "weapons: ffffffffffff", Version: lorasmith '
    )


@pytest.mark.parametrize("prompt", ["an axe", 'two lines,\nand a "quote": x', "Ein Beil für 斧", "", "Steps: 3"])
@pytest.mark.parametrize("negative", ["", "blurry, bad\nand worse"])
def test_it_is_read_back(prompt: str, negative: str) -> None:
    loras = [LoraNote("a", 1.0, "1" * 64), LoraNote("b, c", -0.5, "2" * 64)]
    request = Request(prompt, negative, seed=2**60, sampler="euler-a", guidance=3.0)
    fields = parse_parameters(parameters_text(request, (64, 32), "model, with: commas", "ab" * 32, loras))
    assert (fields["Prompt"], fields["Negative prompt"]) == (prompt, negative)
    assert (fields["Seed"], fields["Size"], fields["Sampler"]) == (str(2**60), "64x32", "Euler a")
    assert fields["Model"] == "model, with: commas"
    assert fields["Loras"] == "a:1,b, c:-0.5"
    assert fields["Lora hashes"] == "a: 111111111111, b, c: 222222222222"


def test_a_text_of_the_web_ui_itself() -> None:
    text = (
        "masterpiece, (axe:1.2) <lora:foo:0.7>\nNegative prompt: lowres\nSteps: 20, Sampler: Euler a, CFG scale: 7, "
        'Seed: 5, Size: 512x512, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Lora hashes: "foo: abc, bar: d"'
    )
    fields = parse_parameters(text)
    assert fields["Prompt"] == "masterpiece, (axe:1.2)"
    assert fields["Model"] == "v1-5-pruned-emaonly"
    assert fields["Lora hashes"] == "foo: abc, bar: d"
    assert parse_parameters("only a prompt") == {"Prompt": "only a prompt", "Negative prompt": ""}


def test_samplers_have_names_of_their_own() -> None:
    assert len({sampler.title for sampler in SAMPLERS.values()}) == len(SAMPLERS)


def test_png_holds_picture_and_text() -> None:
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    data = png_bytes(picture, "an axe 斧\0")
    assert data == png_bytes(picture, "an axe 斧\0")
    image = Image.open(BytesIO(data))
    assert image.info["parameters"] == "an axe 斧"
    assert (np.asarray(image) == picture).all()
