from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.dataset.project import base_size, new_project, trigger_of
from lorasmith.errors import DataError, OutputError, RecipeError
from lorasmith.events import Finished, Warned
from lorasmith.recipe.load import load_recipe


def write(folder: Path, count: int, *, side: int = 256, caption: str = "an axe {n}") -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(count)
    for n in range(count):
        Image.fromarray(random.integers(0, 255, (side, side + n, 3), np.uint8)).save(folder / f"{n}.png")
    entries = [{"file_name": f"{n}.png", "text": caption.format(n=n)} for n in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    return folder


def comments_and_keys(text: str) -> list[tuple[str, str]]:
    """Return each key's line with the line before it."""
    lines = text.splitlines()
    return [(lines[i - 1], line) for i, line in enumerate(lines) if "=" in line and not line.startswith("#")]


def test_the_recipe_suits_the_pictures(tmp_path: Path) -> None:
    axe = write(tmp_path / "data" / "10_axe", 24, caption="zx, an axe {n}")
    bow = write(tmp_path / "data" / "bow", 6, caption="a drawing {n}")
    events = list(new_project(tmp_path / "work" / "blossom", [axe, bow]))
    path = tmp_path / "work" / "blossom" / "recipe.toml"
    recipe = load_recipe(path)
    assert recipe.name == "blossom"
    assert recipe.data.folders == (axe, bow)
    assert recipe.data.resolution == base_size("starter")[0]
    assert recipe.train.steps == 400  # 30 pictures x 50 / 4, in hundreds
    assert recipe.train.save_every == 80
    assert recipe.lora.rank == recipe.lora.alpha == 16
    assert recipe.data.validation == 0.1
    assert recipe.samples.prompts == ("zx, an axe", "a drawing 0")
    text = path.read_text(encoding="utf-8")
    assert '"../../data/10_axe"' in text
    assert "10_axe with 24 pictures, bow with 6 pictures" in text
    assert "each of the 30 pictures is seen about 53 times" in text
    assert 'is called by "zx"' in text
    assert all(before.startswith("# ") for before, _ in comments_and_keys(text))
    (finished,) = (e for e in events if isinstance(e, Finished))
    assert finished.files == (path,)
    assert finished.figures == {"pictures": 30}


def test_small_and_few_pictures(tmp_path: Path) -> None:
    folder = write(tmp_path / "axe", 9, side=100)
    (folder / "no.png").write_bytes(b"x")
    events = list(new_project(tmp_path / "p", [folder], trigger="zx"))
    recipe = load_recipe(tmp_path / "p" / "recipe.toml")
    assert recipe.data.resolution == 64
    assert recipe.data.validation == 0
    assert recipe.lora.rank == 8
    assert recipe.train.steps == 300
    assert recipe.samples.prompts == ("zx, an axe",)
    warned = [e.message for e in events if isinstance(e, Warned)]
    assert len(warned) == 2 and '9 of 9 captions lack the trigger "zx"' in warned[1]


def test_the_base_decides_the_size(tmp_path: Path, tiny_base: Path) -> None:
    folder = write(tmp_path / "axe", 3)
    list(new_project(tmp_path / "p", [folder], base=str(tiny_base)))
    recipe = load_recipe(tmp_path / "p" / "recipe.toml")
    assert recipe.data.resolution == 32
    assert Path(recipe.base).resolve() == tiny_base.resolve()
    list(new_project(tmp_path / "q", [], base="owner/model"))
    recipe = load_recipe(tmp_path / "q" / "recipe.toml")
    assert (recipe.base, recipe.data.resolution) == ("owner/model", 512)


def test_a_project_without_pictures(tmp_path: Path) -> None:
    list(new_project(tmp_path / "first", []))
    recipe = load_recipe(tmp_path / "first" / "recipe.toml")
    assert recipe.data.folders == (tmp_path / "first" / "pictures",)
    assert recipe.data.folders[0].is_dir()
    assert recipe.samples.prompts == ()


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    list(new_project(taken, []))  # an empty folder may be filled
    before = (taken / "recipe.toml").read_bytes()
    with pytest.raises(OutputError, match="already there"):
        list(new_project(taken, []))
    assert (taken / "recipe.toml").read_bytes() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="already there"):
        list(new_project(tmp_path / "file", []))
    with pytest.raises(RecipeError, match="cannot name a LoRA"):
        list(new_project(tmp_path / "no spaces", []))
    with pytest.raises(DataError, match="not there"):
        list(new_project(tmp_path / "p", [tmp_path / "gone"]))
    assert not (tmp_path / "p").exists()


def test_names_that_try_to_break_the_recipe(tmp_path: Path) -> None:
    folder = write(tmp_path / 'a"b] # steps = 9', 3, caption='"""\n# {n}')
    list(new_project(tmp_path / "p", [folder]))
    recipe = load_recipe(tmp_path / "p" / "recipe.toml")
    assert recipe.data.folders == (folder,)
    assert recipe.train.steps == 300
    odd = write(tmp_path / "a\n[train]", 3)
    with pytest.raises(RecipeError, match="rename it"):
        list(new_project(tmp_path / "q", [odd]))
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("captions", "trigger"),
    [
        (["zx, an axe", "zx, a bow", "zx, a key"], "zx"),
        (["blossom style, x", "blossom style, y"], "blossom style"),
        (["an axe, red", "an axe, blue"], ""),
        (["zx, a", "b", "c"], ""),
        (["an axe"], ""),
        ([", a"], ""),
        ([], ""),
    ],
)
def test_triggers_are_recognised(captions: list[str], trigger: str) -> None:
    assert trigger_of(captions) == trigger
