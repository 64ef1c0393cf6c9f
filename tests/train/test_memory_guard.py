"""Where memory does not suffice: smaller passes, then gradient checkpointing, then a stop that says what would fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorasmith.errors import DeviceError
from lorasmith.events import CheckpointSaved, Event, Finished, StepDone, Warned
from lorasmith.model.formats import read_lora
from lorasmith.model.stable_diffusion import StableDiffusion, load_base
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_log import read_log
from lorasmith.train.loop import train
from lorasmith.train.memory_guard import is_out_of_memory
from lorasmith.train.trainer import Trainer

from .helpers import latent_set, text_set
from .injected import go, inject_shortage, of, state_of, without_forecast

MakeRecipe = Callable[..., Recipe]
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes")
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_forecast(monkeypatch)


def checkpointed(unet: Any) -> bool:
    return any(getattr(part, "gradient_checkpointing", False) for part in unet.modules())


def changes(events: list[Event]) -> list[str]:
    return [e.message for e in of(events, Warned) if "memory did not suffice" in e.message]


@pytest.mark.parametrize("error", [CPU, CUDA, MemoryError(), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")])
def test_a_want_of_memory_is_known_whoever_tells_of_it(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors_are_not_taken_for_one(
    sd: StableDiffusion, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    assert not is_out_of_memory(error)
    inject_shortage(monkeypatch, lambda *_: False, error)
    trainer = Trainer(sd, make_recipe(), latent_set(), text_set(sd))
    with pytest.raises(type(error), match=str(error)):
        trainer.advance()
    assert trainer.room.at_once == 2 and not trainer.room.untold


@pytest.mark.parametrize("error", [CPU, CUDA])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_half_the_pictures_twice_as_often_learns_the_same(
    tiny_base: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, error: Exception, dropout: float
) -> None:
    """With dropout the draws of a pass depend on its size, so there only what one gets from the start is compared."""

    def trained(batch: int, accumulation: int) -> list[torch.Tensor]:
        sd = load_base(str(tiny_base))
        recipe = make_recipe(train={"batch": batch, "accumulation": accumulation}, lora={"dropout": dropout})
        trainer = Trainer(sd, recipe, latent_set(), text_set(sd))
        figures = [trainer.advance() for _ in range(3)]
        return [*figures, *state_of(trainer)]

    alone = trained(2 if dropout else 8, 4 if dropout else 1)
    sizes = inject_shortage(monkeypatch, lambda _, pictures: pictures <= 2, error)
    scarce = trained(8, 1)
    assert sizes == [8, 4, *[2] * 12]
    for one, other in zip(alone, scarce, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if dropout else 1e-4, atol=0 if dropout else 1e-5)


def test_nothing_of_a_pass_that_failed_halfway_is_left_in_the_gradient(
    sd: StableDiffusion, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two passes fails: what the first has added must go, or its pictures would count twice."""
    trainer = Trainer(sd, make_recipe(train={"batch": 4, "accumulation": 2}), latent_set(), text_set(sd))
    trainer.advance()
    passes = 0

    def fits(_: Any, pictures: int) -> bool:
        nonlocal passes
        passes += 1
        return passes != 2

    seen: list[torch.Tensor] = []
    real = trainer.ranks.sum_gradients

    def looking(parameters: Any, loss: torch.Tensor) -> torch.Tensor:
        seen.extend(p.grad.clone() for p in trainer.parameters if p.grad is not None)
        return real(parameters, loss)

    monkeypatch.setattr(type(trainer.ranks), "sum_gradients", lambda _, p, loss: looking(p, loss))
    before = [p.detach().clone() for p in trainer.parameters]
    sizes = inject_shortage(monkeypatch, fits, CUDA)
    figures = trainer.advance()
    assert sizes == [4, 4, 2, 2, 2, 2]
    scarce, seen = seen, []
    with torch.no_grad():
        for parameter, value in zip(trainer.parameters, before, strict=True):
            parameter.copy_(value)
    trainer.step -= 1
    trainer.room.at_once = 4
    again = trainer.advance()
    torch.testing.assert_close(figures, again, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scarce, seen, rtol=1e-3, atol=1e-6)


def test_a_training_goes_on_with_smaller_passes_and_says_so(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = go(Run.create(tmp_path / "plain", make_recipe(train={"batch": 4, "log_every": 1})))
    with monkeypatch.context() as patch:
        scarce_from_here = [False]

        def fits(unet: Any, pictures: int) -> bool:
            return not scarce_from_here[0] or pictures == 1

        inject_shortage(patch, fits, CUDA)
        advance = Trainer.advance

        def advancing(self: Trainer) -> torch.Tensor:
            scarce_from_here[0] = self.step >= 2
            try:
                return advance(self)
            finally:
                scarce_from_here[0] = False  # validation is not what is scarce here

        patch.setattr(Trainer, "advance", advancing)
        events = go(Run.create(tmp_path / "scarce", make_recipe(train={"batch": 4, "log_every": 1})))
    told = changes(events)
    assert len(told) == 2
    assert "in step 3: from here on 2 instead of 4 pictures" in told[0] and "in 2 passes" in told[0]
    assert "in step 3: from here on 1 instead of 2 pictures" in told[1] and "in 4 passes" in told[1]
    logged = [r["message"] for r in read_log(tmp_path / "scarce") if r["event"] == "Warned"]
    assert [message for message in logged if "memory did not suffice" in message] == told
    one, other = ([(e.step, e.loss) for e in of(ev, StepDone)] for ev in (plain, events))
    assert one[:2] == other[:2] and [s for s, _ in one] == [s for s, _ in other]
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in other], rel=1e-3)
    assert not read_lora(of(events, Finished)[0].files[0]).is_zero


def test_then_gradient_checkpointing_comes(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []

    def fits(unet: Any, pictures: int) -> bool:
        if not torch.is_grad_enabled():
            return True
        seen.append((pictures, checkpointed(unet)))
        return seen[-1] == (1, True)

    inject_shortage(monkeypatch, fits, CPU)
    events = go(Run.create(tmp_path / "run", make_recipe(train={"steps": 2})))
    assert seen == [(2, False), (1, False), *[(1, True)] * 4]
    assert "gradient checkpointing is on" in changes(events)[-1] and len(changes(events)) == 2
    assert of(events, Finished)


def test_at_last_it_stops_with_what_would_fit_and_keeps_what_it_has(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_section = {"save_every": 2, "log_every": 1}
    events: list[Event] = []
    with monkeypatch.context() as patch:
        inject_shortage(patch, lambda *_: not (of(events, CheckpointSaved) and torch.is_grad_enabled()), CUDA)
        run = Run.create(tmp_path / "run", make_recipe(train=train_section))
        with run, pytest.raises(DeviceError) as caught:
            for event in train(run.recipe, run):
                events.append(event)
    error = str(caught.value)
    assert "The memory does not suffice, with 1 picture in a pass and gradient checkpointing" in error
    assert "forecast" in error and "The checkpoints before are good." in error
    assert [e.step for e in of(events, CheckpointSaved)] == [2]
    assert len(changes(events)) == 2  # told before it stops
    go(Run.open(tmp_path / "run"))
    go(Run.create(tmp_path / "plain", make_recipe(train=train_section)))
    files = [tmp_path / name / "lora.safetensors" for name in ("run", "plain")]
    assert files[0].read_bytes() == files[1].read_bytes()
