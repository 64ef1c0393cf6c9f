"""A checkpoint without a true manifest does not exist, and old ones go in the right order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasmith.recipe.load import load_recipe
from lorasmith.run import Run
from lorasmith.run_manifest import complete_checkpoints, fault, newest_valid, superseded


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with Run.create(tmp_path / "r", load_recipe(None)) as run:
        for step in (2, 4, 1_000_000):
            with run.commit_checkpoint(step) as folder:
                (folder / "lora.safetensors").write_bytes(b"weights %d" % step)
    return tmp_path / "r"


def test_the_newest_without_a_fault_is_found_and_the_others_are_told_why(run: Path) -> None:
    two, four, many = complete_checkpoints(run)
    assert many.name == "step-1000000"  # in the order of numbers, not of letters
    assert newest_valid(run) == (many, [])
    (many / "manifest.json").unlink()
    (four / "lora.safetensors").write_bytes(b"WEIGHTS 4")  # of the same size
    found, passed = newest_valid(run)
    assert found == two
    assert [p.path for p in passed] == [many, four]
    assert "never finished" in passed[0].reason and "damaged" in passed[1].reason
    (two / "lora.safetensors").write_bytes(b"w")
    assert "1 bytes instead of 9" in str(fault(two))
    (two / "lora.safetensors").unlink()
    assert "cannot be read" in str(fault(two))
    assert newest_valid(run)[0] is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"step": 2, "files": {}}', '{"step": 4, "files": {"lora.safetensors": {"bytes": 9}}}',
     '{"step": 2, "files": {"../../secret": {"bytes": 1, "sha256": ""}}}',
     '{"step": 2, "files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}', " " * (2 << 20)],
)  # fmt: skip
def test_a_manifest_of_another_form_is_none(run: Path, text: str) -> None:
    (run / "checkpoints" / "step-000002" / "manifest.json").write_text(text)
    assert "manifest" in str(fault(run / "checkpoints" / "step-000002"))


def test_the_manifest_of_another_checkpoint_is_none(run: Path) -> None:
    text = (run / "checkpoints" / "step-000004" / "manifest.json").read_text()
    assert json.loads(text)["step"] == 4
    (run / "checkpoints" / "step-000002" / "manifest.json").write_text(text)
    assert fault(run / "checkpoints" / "step-000002")


def test_the_best_the_last_and_every_so_many_stay() -> None:
    steps = [10, 20, 30, 40, 50, 60]
    assert superseded(steps, None, 10, None) == []
    assert superseded(steps, 20, 2, None) == [10, 30, 40]
    assert superseded(steps, 60, 1, None) == [10, 20, 30, 40, 50]
    assert superseded(steps, None, 1, 30) == [10, 20, 40, 50]
    assert superseded([], None, 1, 30) == []


def test_a_kill_between_two_renames_loses_no_checkpoint(run: Path) -> None:
    four = run / "checkpoints" / "step-000004"
    four.rename(four.with_name(".step-000004-0a1b2c3d-old"))  # its successor was about to take its place
    (run / "checkpoints" / "step-000002").rename(run / "checkpoints" / ".step-000002-gone")
    draft = run / "checkpoints" / ".step-000006-0a1b2c3d"
    draft.mkdir()
    Run.open(run).close()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000004", "step-1000000"]
    assert fault(four) is None
