"""A run folder is never overwritten and its checkpoints are complete or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasmith.errors import OutputError, RunError
from lorasmith.events import Note, StepDone, from_json
from lorasmith.recipe.load import load_recipe
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(None, overrides=["name=axe"])


def test_a_run_writes_its_recipe_and_circumstances_first(tmp_path: Path, recipe: Recipe) -> None:
    with Run.create(tmp_path / "deep" / "axe-001", recipe) as run:
        assert load_recipe(run.path / "recipe.toml") == recipe
        run.record(seed=5, base={"sha256": "ab"})
    facts = json.loads((run.path / "provenance.json").read_text("utf-8"))
    assert facts["seed"] == 5
    assert facts["base"] == {"sha256": "ab"}
    assert facts["packages"]["torch"]


def test_a_run_refuses_a_folder_with_anything_in_it(tmp_path: Path, recipe: Recipe) -> None:
    Run.create(tmp_path / "axe-001", recipe).close()
    with pytest.raises(RunError) as caught:
        Run.create(tmp_path / "axe-001", recipe)
    assert f"--out {tmp_path / 'axe-002'}" in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        Run.create(tmp_path / "file", recipe)
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", recipe).close()


def test_new_path_counts_on(tmp_path: Path) -> None:
    assert Run.new_path(tmp_path / "none", "axe").name == "axe-001"
    for name in ("axe-001", "axe-007", "axe-old", "axe-head-900"):
        (tmp_path / name).mkdir()
    assert Run.new_path(tmp_path, "axe").name == "axe-008"


def test_events_are_appended_and_read_back(tmp_path: Path, recipe: Recipe) -> None:
    events = [Note("héllo"), StepDone(1, 2, 0.5, 1e-4, 1.0, 3.0, 4.0)]
    with Run.create(tmp_path / "r", recipe) as run:
        for event in events:
            run.append(event)
        run.append(StepDone(2, 2, float("nan"), 0, 0, 0, 0))
    lines = [json.loads(line) for line in (run.path / "events.jsonl").read_text("utf-8").splitlines()]
    assert [from_json(line) for line in lines[:2]] == events
    assert lines[2]["loss"] is None
    assert all("time" in line for line in lines)


def test_a_checkpoint_is_complete_or_absent(tmp_path: Path, recipe: Recipe) -> None:
    with Run.create(tmp_path / "r", recipe) as run:
        with run.commit_checkpoint(10) as folder:
            (folder / "lora.safetensors").write_bytes(b"weights")
            assert run.checkpoints() == []
        with pytest.raises(KeyboardInterrupt), run.commit_checkpoint(20) as folder:
            (folder / "lora.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        assert run.checkpoints() == [run.checkpoint_folder(10)]
        assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-000010"]
        manifest = json.loads((run.checkpoint_folder(10) / "manifest.json").read_text("utf-8"))
        assert manifest["files"]["lora.safetensors"]["bytes"] == 7

        with run.commit_checkpoint(10) as folder:
            (folder / "lora.safetensors").write_bytes(b"again")
        assert (run.checkpoint_folder(10) / "lora.safetensors").read_bytes() == b"again"
        (run.checkpoint_folder(10) / "lora.safetensors").write_bytes(b"cut")
        assert run.checkpoints() == []


def test_a_disk_that_fills_up_during_a_checkpoint(tmp_path: Path, recipe: Recipe) -> None:
    with Run.create(tmp_path / "r", recipe) as run:
        with pytest.raises(OutputError, match="Free some space"), run.commit_checkpoint(1):
            raise OSError(28, "No space left on device")
        assert list((run.path / "checkpoints").iterdir()) == []


def test_a_run_in_use_is_refused(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.create(tmp_path / "r", recipe):
        monkeypatch.setattr("lorasmith.run._require_free", lambda path: None)  # as if both had begun at once
        with pytest.raises(RunError, match="Another process"):
            Run.create(tmp_path / "r", recipe)


def test_a_run_that_cannot_be_begun_leaves_nothing(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("No space left on device.", where="provenance.json")

    with monkeypatch.context() as patch:
        patch.setattr("lorasmith.run.write_json", full)
        with pytest.raises(OutputError):
            Run.create(tmp_path / "axe-001", recipe)
    assert not (tmp_path / "axe-001").exists()
    Run.create(tmp_path / "axe-001", recipe).close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_events_that_cannot_be_written_are_told_once(tmp_path: Path, recipe: Recipe) -> None:
    run = Run.create(tmp_path / "axe-001", recipe)
    run._events.close()
    run._events = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115 -- closed by the run
    with pytest.raises(OutputError, match=r"events\.jsonl"), run:
        run.append(Note("x"))
    with Run.create(tmp_path / "axe-002", recipe):  # the lock was given back, too
        assert not run._lock.is_locked
