"""Reading recipes: layers, paths, and every problem at once with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorasmith.errors import RecipeError
from lorasmith.recipe.load import known_keys, load_recipe, preset_names
from lorasmith.recipe.schema import Recipe


def write(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def test_nothing_given_is_the_schema_defaults() -> None:
    assert load_recipe(None) == Recipe()


def test_file_lies_over_preset_and_under_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nsteps = 7\nbatch = 3\n[lora]\nrank = 5\n")
    recipe = load_recipe(path, preset="reference", overrides=["train.steps=9"])
    assert (recipe.train.steps, recipe.train.batch, recipe.lora.rank) == (9, 3, 5)
    assert recipe.train.accumulation == 4  # the preset's


def test_the_reference_preset_is_the_reference_work() -> None:
    train = load_recipe(None, preset="reference").train
    assert (train.steps, train.batch, train.accumulation, train.learning_rate) == (15000, 1, 4, 1e-5)
    assert (train.precision, train.gradient_checkpointing, train.schedule) == ("fp16", True, "constant")
    assert load_recipe(None, preset="reference").lora.rank == 4


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads(preset: str) -> None:
    assert load_recipe(None, preset=preset).version == 1


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean quality"):
        load_recipe(None, preset="qualty")


def test_paths_in_a_file_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "model").mkdir(parents=True)
    path = write(tmp_path / "deep", 'base = "model"\n[data]\nfolders = ["../axe"]\n')
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path.relative_to(tmp_path))
    assert recipe.data.folders == (tmp_path / "axe",)
    assert Path(recipe.base) == tmp_path / "deep" / "model"


def test_paths_on_the_command_line_start_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write(tmp_path, '[data]\nfolders = ["old"]'), folders=[Path("axe"), Path("spear")])
    assert recipe.data.folders == (tmp_path / "axe", tmp_path / "spear")


def test_a_base_that_is_no_path_stays_as_it_is() -> None:
    assert load_recipe(None, base="someone/some-model").base == "someone/some-model"


def test_one_folder_names_the_lora() -> None:
    assert load_recipe(None, folders=[Path("pictures/axe")]).name == "axe"
    assert load_recipe(None, folders=[Path("axe")], overrides=["name=pink"]).name == "pink"
    assert load_recipe(None, folders=[Path("my axes!")]).name == "lora"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=400", "train.steps", 400),
        ("train.learning_rate = 1e-4", "train.learning_rate", 1e-4),
        ("data.flip=true", "data.flip", True),
        ("base=org/model", "base", "org/model"),
        ('samples.prompts=["an axe", "a = b"]', "samples.prompts", ("an axe", "a = b")),
        ("samples.negative=blurry, text = bad", "samples.negative", "blurry, text = bad"),
        ("lora.alpha=8", "lora.alpha", 8.0),
    ],
)
def test_overrides_are_toml_or_text(override: str, key: str, value: object) -> None:
    found: object = load_recipe(None, overrides=[override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_all_problems_are_reported_at_once_with_line_and_nearest_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'version = 1\nnote = """\nsteps = 1\n"""\n[train]\nstepz = 5\nbatch = 0\nseed = "one"\n'
        "[data]\nresolution = 9000\n[lroa]\nrank = 4\n",
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=["train.warmpu=3", "train.accumulation=-1", "flip", "steps=3"])
    text = str(caught.value)
    for line in (
        f"{path}:2: note: unknown key",
        f"{path}:6: train.stepz: unknown key. Did you mean train.steps?",
        f"{path}:7: train.batch: must be greater than or equal to 1, not 0",
        f"{path}:8: train.seed: must be a valid integer, not 'one'",
        f"{path}:10: data.resolution: must be less than or equal to 2048, not 9000",
        f"{path}:11: lroa: unknown key. Did you mean lora?",
        "--set train.warmpu=3: unknown key 'train.warmpu'. Did you mean train.warmup?",
        "--set train.accumulation=-1: train.accumulation: must be greater than or equal to 1, not -1",
        "--set flip: must be written as key=value",
        "--set steps=3: unknown key 'steps'. Did you mean train.steps or samples.steps?",
    ):
        assert line in text
    assert "has 10 problems" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nsteps = = 3\n", ":2"),
        ('[data]\nfolders = ["C:\\Users\\me"]\n', "write / instead of"),
        ("[train]\nlearning_rate = nan\n", "finite"),
        ("[train]\nsteps = true\n", "valid integer"),
        ('[train]\nsteps = "10"\n', "valid integer"),
        ("version = 2\n", "must be 1, not 2"),
        ('name = "../x"\n', "letters, digits"),
        ('name = "con"\n', "letters, digits"),
        ("data = 4\n", "data"),
        ('[samples]\nsampler = "eulr"\n', "'euler'"),
        ('[samples]\nprompts = [""]\n', "samples.prompts"),
    ],
)
def test_bad_recipes_say_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert words in str(caught.value)
    assert "recipe.toml" in str(caught.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b'# one\nname = "\xe9"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "latin.toml")
    assert "UTF-8" in str(caught.value)
    assert "latin.toml:2" in str(caught.value)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbfversion = 1\n")
    assert load_recipe(tmp_path / "r.toml") == Recipe()


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_a_folder_name_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.folders"):
        load_recipe(None, folders=[Path(os.fsdecode(b"axe\xff"))])


def test_known_keys() -> None:
    assert "train.learning_rate" in known_keys()
    assert "name" in known_keys()
    assert "train" not in known_keys()
