"""Every write of a save fails in turn: the run ends with one message, and the checkpoint before is whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lorasmith import files
from lorasmith.errors import LorasmithError, OutputError
from lorasmith.events import CheckpointSaved, Sampled, StepDone
from lorasmith.model.stable_diffusion import load_base
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_manifest import fault, newest_valid, step_of
from lorasmith.train.loop import train
from lorasmith.train.trainer import Trainer

from .helpers import latent_set, text_set
from .injected import without_forecast


@pytest.fixture(autouse=True)
def _no_hook_stays() -> Iterator[None]:
    yield
    files.before = None


@pytest.fixture
def trainer(tiny_base: Path, make_recipe: Callable[..., Recipe]) -> Trainer:
    sd = load_base(str(tiny_base))
    made = Trainer(sd, make_recipe(), latent_set(), text_set(sd))
    made.advance()
    return made


def failing(nth: int, code: int) -> Callable[[str, Path], None]:
    """Return a hook that lets the nth call and all after it fail, as a disk that is full or broken does."""
    seen = 0

    def before(call: str, path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen >= nth:
            raise OSError(code, "injected", str(path))

    return before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_write_of_a_save_fails_in_turn(
    trainer: Trainer, make_recipe: Callable[..., Recipe], tmp_path: Path, code: int
) -> None:
    told = 0
    with Run.create(tmp_path / "run", make_recipe()) as run:
        with run.commit_checkpoint(1) as folder:
            trainer.save(folder, {})
        before = {p.name: p.read_bytes() for p in run.checkpoint_folder(1).iterdir()}
        for nth in range(1, 100):
            files.before = failing(nth, code)
            try:
                with run.commit_checkpoint(2) as folder:
                    trainer.save(folder, {})
            except OutputError as error:
                told += 1
                assert error.where and str(run.path) in error.where
                assert error.fix and (code != errno.ENOSPC or "Free some space" in error.fix)
            else:
                break
            finally:
                files.before = None
            assert {p.name: p.read_bytes() for p in run.checkpoint_folder(1).iterdir()} == before
            newest, passed = newest_valid(run.path)
            # Only what the parent folder's flush refuses comes after the checkpoint is whole.
            assert newest in (run.checkpoint_folder(1), run.checkpoint_folder(2)) and passed == []
            for path in (run.path / "checkpoints").glob("step-*2"):
                assert fault(path) is None
                shutil.rmtree(path)
            for left in (run.path / "checkpoints").glob(".*"):  # a disk that fails does not remove either
                shutil.rmtree(left)
        assert run.checkpoints() == [run.checkpoint_folder(1), run.checkpoint_folder(2)]
    assert told >= 20


def test_replacing_a_damaged_checkpoint_that_fails_leaves_it_as_it_was(
    trainer: Trainer, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with Run.create(tmp_path / "run", make_recipe()) as run:
        with run.commit_checkpoint(1) as folder:
            (folder / "a").write_bytes(b"old")

        def before(call: str, path: Path) -> None:
            if call == "rename" and path == run.checkpoint_folder(1):
                raise OSError(errno.EIO, "injected")

        files.before = before
        with pytest.raises(OutputError), run.commit_checkpoint(1) as folder:
            (folder / "a").write_bytes(b"new")
        assert (run.checkpoint_folder(1) / "a").read_bytes() == b"old"


def test_what_does_not_read_back_is_told(
    trainer: Trainer, make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.rename

    def damaging(source: Path, target: Path) -> None:
        if target.name == "state.safetensors":
            source.write_bytes(source.read_bytes()[:-1] + b"\xff")
        real(source, target)

    monkeypatch.setattr(files, "rename", damaging)
    with Run.create(tmp_path / "run", make_recipe()) as run:
        with pytest.raises(LorasmithError, match="does not read back"), run.commit_checkpoint(1) as folder:
            trainer.save(folder, {})
        assert run.checkpoints() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if sys.platform != "linux":
        pytest.skip("tmpfs")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("this user may mount nothing")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(path: Path, spare: int = 0) -> None:
    """Write to ``path`` until nothing more fits on its disk, but for ``spare`` bytes."""
    with path.open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    os.truncate(path, path.stat().st_size - spare)


def test_saves_until_a_small_disk_is_full(
    trainer: Trainer, make_recipe: Callable[..., Recipe], small_disk: Path
) -> None:
    saved = 0
    with Run.create(small_disk / "run", make_recipe()) as run, pytest.raises(OutputError, match="No space"):
        fill(small_disk / "ballast", 400 << 10)
        for step in range(1, 100):
            with run.commit_checkpoint(step) as folder:
                trainer.save(folder, {})
            saved = step
    assert saved >= 1
    newest, passed = newest_valid(small_disk / "run")
    assert newest is not None and newest.name == f"step-{saved:06d}" and passed == []
    assert not list((small_disk / "run" / "checkpoints").glob(".*"))
    trainer.restore(newest)
    assert all(t.isfinite().all() for t in trainer.lora().tensors.values()) and isinstance(trainer.step, int)
    assert torch.isfinite(trainer.advance()).all()


@pytest.mark.parametrize("spare", [0, 40 << 10])  # the log does not fit any more; a part of the next checkpoint does
def test_a_small_disk_that_is_filled_while_it_trains(
    make_recipe: Callable[..., Recipe],
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    spare: int,
) -> None:
    """It ends with one message, no traceback of any thread, and a checkpoint from which it ends as it would have."""
    without_forecast(monkeypatch)
    recipe = make_recipe(train={"steps": 200, "save_every": 2, "log_every": 1, "keep_last": 2})
    run, last = Run.create(small_disk / "run", recipe), 0
    with run, pytest.raises(OutputError, match="cannot be written: No space") as caught:
        for event in train(recipe, run):
            last = event.step if isinstance(event, StepDone) else last
            if isinstance(event, Sampled) and event.step == 4:
                fill(small_disk / "ballast", spare)
    assert caught.value.where and str(small_disk / "run") in caught.value.where
    assert caught.value.fix and "Free some space" in caught.value.fix
    newest, passed = newest_valid(small_disk / "run")
    assert newest is not None and passed == [] and 4 <= step_of(newest) <= last < 200
    assert capfd.readouterr().err == ""

    (small_disk / "ballast").unlink()
    with Run.open(small_disk / "run") as run:
        stop_at(run, step_of(newest) + 2)
    with Run.create(tmp_path / "whole", recipe) as whole:
        stop_at(whole, step_of(newest) + 2)
    for name in ("lora.safetensors", "state.safetensors"):
        one, other = (r.checkpoint_folder(step_of(newest) + 2) / name for r in (run, whole))
        assert one.read_bytes() == other.read_bytes()


def stop_at(run: Run, step: int) -> None:
    """Train until the checkpoint of ``step`` is there."""
    for event in train(run.recipe, run):
        if isinstance(event, CheckpointSaved) and event.step == step:
            return
    raise AssertionError(f"no checkpoint at step {step}")
