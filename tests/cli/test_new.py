from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.cli.main import run


def test_a_new_project_trains(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "axe").mkdir()
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "axe" / f"{n}.png")
    assert run(["new", "blossom", "axe", "--base", str(tiny_base)]) == 0
    assert "6 pictures in one class: axe (6)" in capsys.readouterr().out
    small = ["train.steps=2", "samples.steps=2", "train.device=cpu", "train.precision=fp32", "train.batch=2"]
    recipe = str(Path("blossom") / "recipe.toml")
    assert run(["train", recipe, *(f"--set={each}" for each in small)]) == 0
    out = capsys.readouterr()
    assert "Warning" not in out.err
    assert (tmp_path / "runs" / "blossom-001" / "lora.safetensors").is_file()


def test_a_project_without_pictures_and_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["new", "first", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "Finished"
    assert run(["new", "first"]) == 2
    assert "already there" in capsys.readouterr().err
    assert run(["train", "first/recipe.toml"]) == 2
    assert "has no pictures" in capsys.readouterr().err
