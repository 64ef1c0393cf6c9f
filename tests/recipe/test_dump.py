"""A recipe written as TOML loads back equal, and the reference page is the schema's."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasmith.recipe.dump import dump_recipe
from lorasmith.recipe.load import load_recipe, preset_names
from lorasmith.recipe.reference import reference_markdown
from lorasmith.recipe.schema import DataSection, Recipe, SamplesSection, Section, TrainSection, is_safe_name


@pytest.mark.parametrize("preset", preset_names())
def test_presets_come_back_equal(tmp_path: Path, preset: str) -> None:
    recipe = load_recipe(None, folders=[tmp_path / "axe"], preset=preset)
    (tmp_path / "r.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "r.toml") == recipe


def test_awkward_text_comes_back_equal(tmp_path: Path) -> None:
    recipe = Recipe(
        name="粉花",
        data=DataSection(folders=(tmp_path / 'a "b" é', tmp_path / "c")),
        train=TrainSection(learning_rate=1e-5, text_encoder_learning_rate=1.0, save_every=3),
        samples=SamplesSection(prompts=('a "quoted" # axe', "line\nbreak\ttab \x7f \\ 花"), negative="'''\"\"\""),
    )
    (tmp_path / "r.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "r.toml") == recipe


def test_every_field_is_described() -> None:
    def missing(section: type[Section]) -> list[str]:
        return [n for n, f in section.model_fields.items() if not isinstance(f.default, Section) and not f.description]

    sections = [type(f.default) for f in Recipe.model_fields.values() if isinstance(f.default, Section)]
    assert [missing(s) for s in [Recipe, *sections]] == [[]] * 5


def test_reference_page_is_made_from_the_schema() -> None:
    page = Path(__file__).parents[2] / "docs" / "recipe.md"
    remake = "remake it: python -m lorasmith.recipe.reference docs/recipe.md"
    assert page.read_text(encoding="utf-8") == reference_markdown(), remake


@pytest.mark.parametrize("name", ["axe", "pink-blossom_1.5", "a", "粉花"])
def test_safe_names(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a.", " a", "NUL", "com1.txt", "a" * 65, "a\n", "a:b"])
def test_unsafe_names(name: str) -> None:
    assert not is_safe_name(name)
