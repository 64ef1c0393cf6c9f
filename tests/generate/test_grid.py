from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.errors import RecipeError
from lorasmith.events import Finished, Progress
from lorasmith.generate.grid import AXES, Axis, grid, make_grid, merge, parse_axis, plan
from lorasmith.generate.sample import Request, sample
from lorasmith.model.stable_diffusion import StableDiffusion

BASE = Request("an axe", seed=1, steps=2)


def coloured(value: int, width: int = 32, height: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_axes_are_parsed() -> None:
    assert parse_axis("seed=1, 2,3") == Axis("seed", (1, 2, 3))
    assert parse_axis("weight=0.5,1") == Axis("weight", (0.5, 1.0))
    assert parse_axis("prompt=an axe, red | a whip") == Axis("prompt", ("an axe, red", "a whip"))
    assert parse_axis("sampler=euler,ddim").labels == ("sampler euler", "sampler ddim")
    assert parse_axis("weight=0.5,1").labels == ("weight 0.5", "weight 1")
    assert parse_axis("checkpoint=base,run/step-000400,b/x.safetensors").labels == ("base", "step-000400", "x")
    for bad in ("seed", "seed=", "seed=x", "width=3", "steps=1.5"):
        with pytest.raises(RecipeError):
            parse_axis(bad)


def test_a_plan_changes_what_its_axes_say() -> None:
    cells = plan(Axis("seed", (1, 2)), Axis("guidance", (3.0, 7.5)), BASE)
    assert [(c.row, c.column, c.request.seed, c.request.guidance) for c in cells] == [
        (0, 0, 1, 3.0),
        (0, 1, 2, 3.0),
        (1, 0, 1, 7.5),
        (1, 1, 2, 7.5),
    ]
    assert all(c.request.prompt == "an axe" and c.lora is None for c in cells)
    cells = plan(Axis("weight", (0.5, 1.0)), Axis("lora", ("base", "x.safetensors")), BASE)
    assert [(c.lora, c.weight) for c in cells] == [
        (None, 0.5),
        (None, 1.0),
        (Path("x.safetensors"), 0.5),
        (Path("x.safetensors"), 1.0),
    ]


@pytest.mark.parametrize("name", AXES)
def test_axes_that_contradict_each_other_are_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        plan(Axis(name, (1,)), Axis(name, (2,)), BASE)
    with pytest.raises(RecipeError):
        plan(Axis("checkpoint", ("a",)), Axis("lora", ("b",)), BASE)
    with pytest.raises(RecipeError, match="needs a LoRA"):
        plan(Axis("weight", (1.0,)), None, BASE)


def test_a_grid_is_drawn_and_its_pictures_are_the_sampled_ones(
    sd: StableDiffusion, tmp_path: Path, lora_path: Path
) -> None:
    rows = Axis("checkpoint", ("base", str(lora_path.parent)))
    events = list(make_grid(sd, Axis("seed", (1, 2, 3)), rows, BASE, tmp_path / "new" / "grid.png"))
    assert [e.done for e in events if isinstance(e, Progress)] == list(range(7))
    assert isinstance(events[-1], Finished)
    image = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    wanted = next(sample(sd, [BASE]))[1]
    # The first picture stands in the grid pixel for pixel, but for what a batch of another size rounds differently.
    places = np.lib.stride_tricks.sliding_window_view(image, wanted.shape)[:, :, 0]
    assert (np.abs(places - wanted.astype(np.int16)) <= 1).all(axis=(2, 3, 4)).any()
    assert not sd.originals


def test_labels_take_room_and_pictures_none() -> None:
    pictures = [[coloured(40), coloured(80)], [coloured(120), coloured(160, 16, 24)]]
    plain = grid(pictures)
    labelled = grid(pictures, columns=["one", "two"], rows=["a", "b"], title="seed 1")
    assert labelled.width > plain.width
    assert labelled.height > plain.height
    for image in (plain, labelled):
        colours = {colour: count for count, colour in image.getcolors(1 << 20) or []}
        assert [colours[v, v, v] for v in (40, 80, 120)] == [1024] * 3
        assert colours[160, 160, 160] == 16 * 24


def test_long_labels_are_wrapped_within_the_picture() -> None:
    image = grid([[coloured(0, 128, 128)]], columns=["a very long prompt " * 12, "x" * 300][:1])
    assert image.width < 200
    assert grid([[coloured(0, 64, 64)]], rows=["x" * 300]).width < 400


def test_a_strip_is_plain() -> None:
    strip = merge([coloured(v, 512, 512) for v in range(5)])
    assert strip.size == (2560, 512)
    assert [strip.getpixel((512 * i + 511, 3)) for i in range(5)] == [(i, i, i) for i in range(5)]
    assert merge([coloured(1, 64, 32), coloured(2, 32, 64)], height=32).size == (64 + 16, 32)
