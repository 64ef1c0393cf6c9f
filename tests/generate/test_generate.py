from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.dataset.read import read_dataset
from lorasmith.errors import LoraError, OutputError, RecipeError
from lorasmith.events import Finished, PictureMade, Progress, Warned
from lorasmith.generate.generate import generate, use_lora
from lorasmith.generate.png_text import parse_parameters
from lorasmith.generate.sample import Request
from lorasmith.model.stable_diffusion import StableDiffusion, load_base

REQUESTS = [Request(f"a pink whip {i}", seed=10 + i, steps=2 + i % 2) for i in range(3)]


def test_pictures_and_events(sd: StableDiffusion, tmp_path: Path, lora_path: Path) -> None:
    out = tmp_path / "out"
    events = list(generate(sd, REQUESTS, out, loras=[use_lora(lora_path.parent, 0.5)], batch=2))
    names = ["00000-10.png", "00001-11.png", "00002-12.png"]
    assert sorted(p.name for p in out.iterdir()) == names
    made = {e.path.name: e for e in events if isinstance(e, PictureMade)}
    assert {name: made[name].seed for name in names} == dict(zip(names, (10, 11, 12)))
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [(i, 3) for i in range(4)]
    assert isinstance(events[-1], Finished)
    assert [p.name for p in events[-1].files] == names
    fields = parse_parameters(Image.open(out / names[1]).info["parameters"])
    assert (fields["Prompt"], fields["Steps"], fields["Loras"]) == ("a pink whip 1", "3", "step-000400:0.5")
    assert sd.sha256.startswith(fields["Model hash"])


def test_the_same_call_writes_the_same_bytes(sd: StableDiffusion, tmp_path: Path, lora_path: Path) -> None:
    loras = [use_lora(lora_path), use_lora(lora_path, -0.5)]
    for name in ("a", "b"):
        list(generate(sd, REQUESTS, tmp_path / name, loras=loras))
    contents = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert contents[0] == contents[1]
    assert not sd.originals


def test_loras_are_used_and_leave_the_base_as_it_was(sd: StableDiffusion, tmp_path: Path, lora_path: Path) -> None:
    def draw(name: str, *weights: float) -> np.ndarray:
        out = tmp_path / name
        list(generate(sd, REQUESTS[:1], out, loras=[use_lora(lora_path, w) for w in weights]))
        return np.asarray(Image.open(out / "00000-10.png")).astype(int)

    base, once = draw("base"), draw("once", 1.0)
    assert np.abs(base - once).max() > 20
    assert (draw("again") == base).all()
    assert np.abs(draw("halves", 0.5, 0.5) - once).max() <= 1


def test_nothing_is_overwritten(sd: StableDiffusion, tmp_path: Path) -> None:
    for _ in range(2):
        list(generate(sd, REQUESTS[:2], tmp_path, pattern="{seed}-{index}"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10-0.png", "10-1.png", "11-1.png", "11-2.png"]
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    list(generate(sd, REQUESTS, tmp_path))
    assert all(p.read_bytes() == data for p, data in before.items())
    assert len(list(tmp_path.iterdir())) == 7


def test_captions_are_read_back_as_a_data_set(sd: StableDiffusion, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    for _ in range(2):
        list(generate(sd, REQUESTS, out, captions=True))
    examples = read_dataset([out]).examples
    prompts = {str(request.seed): request.prompt for request in REQUESTS}
    assert len(examples) == 6
    assert all(e.caption == prompts[e.path.stem.partition("-")[2]] for e in examples)

    own = tmp_path / "own"
    own.mkdir()
    (own / "00000-10.txt").write_text("mine")
    list(generate(sd, REQUESTS[:1], own, captions=True))
    assert (own / "00000-10.txt").read_text() == "mine"
    assert (own / "00001-10.png").exists()


def test_patterns(sd: StableDiffusion, tmp_path: Path) -> None:
    list(generate(sd, [Request("an axe / a: whip?", steps=1)], tmp_path, pattern="{prompt}_{sampler}_{index:03d}"))
    assert [p.name for p in tmp_path.iterdir()] == ["an-axe-a-whip_dpm++2m_000.png"]
    for pattern in ("{seed}", "{index", "{nothing}-{index}", "../{index}", "{index.real.x}", "{}", ""):
        with pytest.raises(RecipeError, match="pattern"):
            list(generate(sd, REQUESTS, tmp_path, pattern=pattern))


def test_a_prompt_that_is_cut_is_told_once(sd: StableDiffusion, tmp_path: Path) -> None:
    requests = [Request("b " * 40, seed=i, steps=1) for i in range(2)]
    warned = [e for e in generate(sd, requests, tmp_path) if isinstance(e, Warned)]
    assert len(warned) == 1
    assert "24 tokens" in warned[0].message
    assert "42" in warned[0].message


def test_a_lora_that_does_not_fit_draws_nothing(other_base: Path, tmp_path: Path, lora_path: Path) -> None:
    with pytest.raises(LoraError, match="does not fit"):
        list(generate(load_base(str(other_base)), REQUESTS, tmp_path / "out", loras=[use_lora(lora_path)]))
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_named_first(sd: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        next(iter(generate(sd, REQUESTS, tmp_path / "file")))


def test_two_at_the_same_time_never_overwrite_each_other(sd: StableDiffusion, tmp_path: Path) -> None:
    first = generate(sd, REQUESTS, tmp_path)
    next(first)  # it has chosen its names
    list(generate(sd, REQUESTS, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    *_, finished = first
    assert isinstance(finished, Finished)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("00000-10.png", "00001-11.png", "00002-12.png"),
        *("00003-10.png", "00004-11.png", "00005-12.png"),
    ]
    assert {path.name for path in finished.files} == {"00003-10.png", "00004-11.png", "00005-12.png"}
