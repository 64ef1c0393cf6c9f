"""Every write of a save fails in turn: the run ends with one message, and the checkpoint before is whole."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lorasmith import files
from lorasmith.errors import LorasmithError, OutputError
from lorasmith.model.stable_diffusion import load_base
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_manifest import fault, newest_valid
from lorasmith.train.trainer import Trainer

from .helpers import latent_set, text_set


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


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs")
def test_a_small_disk_that_fills_up(trainer: Trainer, make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("this user may mount nothing")
    try:
        saved = 0
        with Run.create(disk / "run", make_recipe()) as run, pytest.raises(OutputError, match="No space"):
            for step in range(1, 100):
                with run.commit_checkpoint(step) as folder:
                    trainer.save(folder, {})
                saved = step
        assert saved >= 1
        newest, passed = newest_valid(disk / "run")
        assert newest is not None and newest.name == f"step-{saved:06d}" and passed == []
        assert not list((disk / "run" / "checkpoints").glob(".*"))
        trainer.restore(newest)
        assert all(t.isfinite().all() for t in trainer.lora().tensors.values()) and isinstance(trainer.step, int)
        assert torch.isfinite(trainer.advance()).all()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
