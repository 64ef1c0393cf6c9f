"""Only deterministic algorithms where that is wanted, and words for what has none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorasmith.errors import DeviceError
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train.deterministic import deterministic
from lorasmith.train.trainer import Trainer

from .injected import go, without_forecast

NONE = "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set ..."


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_it_is_so_in_the_block_and_as_before_after_it() -> None:
    torch.backends.cudnn.benchmark = True
    try:
        with deterministic(True):
            assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
        with deterministic(False):
            assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False


def test_what_has_no_deterministic_way_is_told() -> None:
    with pytest.raises(DeviceError, match="no deterministic way") as caught, deterministic(True):
        raise RuntimeError(f"{NONE}\nmore")
    assert caught.value.where == NONE and caught.value.fix and "train.deterministic" in caught.value.fix
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="shapes"), deterministic(True):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_training_on_a_cpu_is_the_same_with_it(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_forecast(monkeypatch)
    seen: list[bool] = []
    real = Trainer.advance

    def advance(self: Trainer) -> Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return real(self)

    monkeypatch.setattr(Trainer, "advance", advance)
    for wanted in (True, False):
        go(Run.create(tmp_path / str(wanted), make_recipe(train={"steps": 2, "deterministic": wanted})))
    assert seen == [True, True, False, False]
    states = [tmp_path / str(w) / "checkpoints" / "step-000002" / "state.safetensors" for w in (True, False)]
    assert states[0].read_bytes() == states[1].read_bytes()
