"""How the values of options are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasmith.cli.options import parse_lora, read_prompts
from lorasmith.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("axe.safetensors", "axe.safetensors", 1.0),
        ("axe.safetensors:0.8", "axe.safetensors", 0.8),
        ("axe.safetensors:-1", "axe.safetensors", -1.0),
        (r"C:\loras\axe.safetensors", r"C:\loras\axe.safetensors", 1.0),
        (r"C:\loras\axe.safetensors:.5", r"C:\loras\axe.safetensors", 0.5),
        ("C:/axe.safetensors:1e-1", "C:/axe.safetensors", 0.1),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
    ],
)
def test_a_lora_with_its_weight(text: str, path: str, weight: float) -> None:
    assert parse_lora(text) == (Path(path), weight)


def test_a_file_with_a_number_after_a_colon_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "axe:2").touch()
    assert parse_lora(str(tmp_path / "axe:2")) == (tmp_path / "axe:2", 1.0)
    assert parse_lora(str(tmp_path / "axe:2:0.5")) == (tmp_path / "axe:2", 0.5)


@pytest.mark.parametrize("text", ["", ":0.5", "axe:nan", "axe:inf"])
def test_a_lora_that_is_none(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_lora(text)


def test_prompts_come_from_options_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffan axe, é\r\n\r\n  a spear # 2\n".encode())
    assert read_prompts(["a whip"], tmp_path / "p.txt") == ["a whip", "an axe, é", "a spear # 2"]


def test_prompts_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9")
    (tmp_path / "empty").touch()
    for prompts, file, words in (
        ([], None, "no prompt"),
        ([" "], None, "no prompt"),
        ([], tmp_path / "empty", "no prompt"),
        ([], tmp_path / "latin", "UTF-8"),
        ([], tmp_path / "missing", "cannot be read"),
    ):
        with pytest.raises(RecipeError, match=words):
            read_prompts(prompts, file)
