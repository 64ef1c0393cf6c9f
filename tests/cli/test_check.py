"""``lorasmith check``: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.cli.main import run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "axe"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_summary_and_exit_code_0(pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["check", str(pictures), "--resolution", "64"]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 pictures can be used; 0 errors" in out
    assert "too-few" in out
    assert (tmp_path / "lorasmith-check" / "findings.json").is_file()
    assert len(out.splitlines()) <= 45


def test_an_error_is_exit_code_1_and_comes_first(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(40):
        (pictures / f"bad{i}.png").touch()
    assert run(["check", str(pictures)]) == 1
    lines = capsys.readouterr().out.splitlines()
    first = next(line for line in lines if line.startswith(("error", "warning", "info")))
    assert first.startswith("error   empty-file x40")
    assert "(and 39 more)" in first
    assert len(lines) <= 45


def test_json_lines(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "bad.png").touch()
    assert run(["check", str(pictures), "--json", "--no-cache"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [event for event in events if event["event"] == "Found"]
    assert any(f["code"] == "empty-file" and f["file"].endswith("bad.png") and f["severity"] == "error" for f in found)
    assert events[-1]["event"] == "Finished"


def test_a_recipe_says_what_to_check(pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('version = 1\n[data]\nfolders = ["axe"]\nresolution = 128\n', encoding="utf-8")
    assert run(["check", "r.toml"]) == 0
    assert "enlarged 2.00 times for 128 px" in capsys.readouterr().out
    assert run(["check", "axe", "--recipe", "r.toml", "--resolution", "64"]) == 0
    assert "enlarged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check"], "No pictures are named"),
        (["check", "axe", "--out", "axe/results"], "cannot lie in the data"),
        (["check", "axe", "--recipe", "nowhere.toml"], "nowhere.toml"),
        (["check", "a.toml", "b.toml"], "Only one recipe"),
        (["check", "axe", "--resolution", "7"], "resolution"),
    ],
)
def test_what_cannot_run_is_exit_code_2(
    pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "nowhere"]) == 1
    assert "missing-folder" in capsys.readouterr().out
