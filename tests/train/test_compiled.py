from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorasmith.events import Note, Warned
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.train.trainer import Trainer

from .helpers import latent_set, text_set

COMPILING = {"compile": True, "batch": 2, "steps": 3}


def losses(trainer: Trainer, steps: int = 3) -> list[float]:
    return [float(trainer.advance()[0]) for _ in range(steps)]


def test_without_a_compiler_it_warns_and_trains_as_ever(
    sd: StableDiffusion, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", lambda module, **options: fails)
    trainer = Trainer(sd, make_recipe(train=COMPILING), latent_set(), text_set(sd))
    events = list(trainer.prepare())
    assert isinstance(events[-1], Warned)
    assert "No working C++ compiler found" in events[-1].message and "much more" not in events[-1].message
    assert all(p.grad is None for p in trainer.parameters)
    assert trainer.unet is sd.unet and trainer.step == 0
    assert all(loss > 0 for loss in losses(trainer))


def test_a_recipe_that_does_not_ask_compiles_nothing(sd: StableDiffusion, make_recipe: Callable[..., Recipe]) -> None:
    trainer = Trainer(sd, make_recipe(), latent_set(), text_set(sd))
    assert list(trainer.prepare()) == []
    assert trainer.unet is sd.unet


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_compiled_unet_trains_the_same_weights(
    tiny_base: Path, make_recipe: Callable[..., Recipe], precision: torch.dtype
) -> None:
    from lorasmith.model.stable_diffusion import load_base

    found = {}
    for compiled in (False, True):
        sd = load_base(str(tiny_base), dtype=precision)
        trainer = Trainer(sd, make_recipe(train={**COMPILING, "compile": compiled}), latent_set(), text_set(sd))
        events = list(trainer.prepare())
        assert not any(isinstance(event, Warned) for event in events), events
        assert compiled == any(isinstance(event, Note) for event in events)
        found[compiled] = losses(trainer), trainer.lora()
        assert not any("_orig_mod" in name for name in trainer.lora().tensors)
        assert not any("_orig_mod" in name for name, _ in sd.unet.named_parameters())
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-3 if precision == torch.float32 else 2e-2)
    assert found[True][1].tensors.keys() == found[False][1].tensors.keys()
