"""``lorasmith curate`` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lorasmith.cli.main import run
from lorasmith.starter.renderer import render


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "axe").mkdir()
    for number in range(2):
        Image.fromarray(render(number, size=64, kinds=["axe"]).image).save(tmp_path / "axe" / f"{number}.png")
    return tmp_path


def test_it_makes_a_clean_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["curate", "axe", "--out", "clean"]) == 0
    assert "in 2, out 2, excluded 0" in capsys.readouterr().out
    assert (here / "clean" / "metadata.jsonl").is_file()
    assert run(["curate", "axe", "--out", "clean"]) == 2
    assert "already there" in capsys.readouterr().err


def test_a_dry_run_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["curate", "axe", "--dry-run", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "Finished"
    assert events[-1]["figures"]["out"] == 2
    assert [p.name for p in here.iterdir()] == ["axe"]


def test_one_picture_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "plan.toml").write_text("[exposure]\nnormalise = true\n", encoding="utf-8")
    assert run(["curate", "axe", "--plan", "plan.toml", "--show", "1.png", "--out", "steps.png"]) == 0
    assert (here / "steps.png").is_file()
    assert "exposure" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["axe"], "--out"),
        (["--out", "clean"], "PATH"),
        (["axe", "--show", "1.png", "--out", "steps"], "PNG"),
        (["axe", "--show", "1.png", "--dry-run"], "--dry-run"),
        (["missing", "--out", "clean"], "missing"),
        (["axe", "--out", "clean", "--plan", "none.toml"], "none.toml"),
    ],
)
def test_what_cannot_be_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["curate", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (here / "clean").exists()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["curate", "--help"]) == 0
    assert "Examples" in capsys.readouterr().out
