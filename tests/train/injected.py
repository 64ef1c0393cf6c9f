"""Faults injected into the steps of a training."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from lorasmith.events import Event, Forecast, Note, Warned
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train import loop, step
from lorasmith.train.loop import train
from lorasmith.train.trainer import Trainer

Fault = Callable[[Tensor], Tensor]


def no_loss(errors: Tensor) -> Tensor:
    """Make the loss NaN, and the gradient with it."""
    return errors * float("nan")


def no_gradient(errors: Tensor) -> Tensor:
    """Leave the loss as it is, and give it a gradient that is not finite."""
    return errors + (errors - errors.detach()).abs().sqrt()


def inject(patch: pytest.MonkeyPatch, fault: Fault, when: Callable[[Trainer, int], bool]) -> list[int]:
    """Let ``fault`` spoil the errors of the steps for which ``when`` is true; return the steps, as they come."""
    advance, errors = Trainer.advance, step.errors
    now: dict[str, Any] = {"spoilt": False}
    seen: list[int] = []

    def advancing(self: Trainer) -> Tensor:
        now["spoilt"] = when(self, self.step + 1)
        if now["spoilt"]:
            seen.append(self.step + 1)
        return advance(self)

    def spoiling(*args: Any, **options: Any) -> Tensor:
        usual = errors(*args, **options)
        return fault(usual) if now["spoilt"] else usual

    patch.setattr(Trainer, "advance", advancing)
    patch.setattr(step, "errors", spoiling)
    return seen


def inject_shortage(patch: pytest.MonkeyPatch, fits: Callable[[Any, int], bool], error: Exception) -> list[int]:
    """Let a training pass raise ``error`` unless ``fits(unet, pictures)``; return the passes' sizes, as they come."""
    errors = step.errors
    seen: list[int] = []

    def scarce(sd: Any, batch: Any, *args: Any) -> Tensor:
        usual = errors(sd, batch, *args)  # first, so that there is something to be thrown away
        seen.append(len(batch))
        if not fits(sd.unet, len(batch)):
            raise error
        return usual

    patch.setattr(step, "errors", scarce)
    return seen


def without_forecast(patch: pytest.MonkeyPatch) -> None:
    """Do without the forecast, most of the time of so short a training."""

    def no_forecast(sd: Any, recipe: Recipe, *_: Any) -> Generator[Event, None, tuple[Recipe, Forecast]]:
        phases = ("training", "validation", "samples", "checkpoints")
        yield (forecast := Forecast({"training": 0.0}, 0.0, dict.fromkeys(phases, 0.0)))
        return recipe, forecast

    patch.setattr(loop, "foretell", no_forecast)


def go(run: Run, recipe: Recipe | None = None, **options: Any) -> list[Event]:
    with run:
        return list(train(recipe or run.recipe, run, **options))


def of(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def words(events: list[Event]) -> str:
    return "\n".join(e.message for e in events if isinstance(e, (Note, Warned)))


def state_of(trainer: Trainer) -> list[Tensor]:
    """Return copies of the adapter's weights and of all that the optimizer keeps."""
    moments = trainer.optimizer.state_dict()["state"]
    kept = [moments[number][name] for number in sorted(moments) for name in sorted(moments[number])]
    return [tensor.detach().clone() for tensor in (*trainer.parameters, *kept)]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
