"""Changes to a recipe that need less memory, each with what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorasmith.model.stable_diffusion import computes_slowly, pick_dtype
from lorasmith.recipe.dump import toml_value
from lorasmith.recipe.load import load_recipe
from lorasmith.recipe.schema import Recipe
from lorasmith.train.estimate import Estimator

_SMALL_RANK = 8
_SIDES = (0.75, 0.5)  # of the resolution
_MOST_ACCUMULATION = 1024  # that a recipe may say
_GRID = 64  # pixels that smaller resolutions are multiples of


@dataclass(frozen=True)
class Change:
    """A change to a recipe: ``settings`` by "section.key"; ``saves`` and then ``need``, in bytes."""

    settings: Mapping[str, Any]
    saves: int
    need: int
    name: str = ""

    def __str__(self) -> str:
        settings = ", ".join(f"{key} = {toml_value(value)}" for key, value in self.settings.items())
        what = f"{self.name} ({settings})" if self.name else settings
        return f"{what} saves {gib(self.saves)}: {gib(self.need)}"


def gib(size: float) -> str:
    """Return a size in bytes as text: GiB, or MiB where it is small."""
    return f"{size / 2**30:.1f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.0f} MiB"


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return ``recipe`` with the values of "section.key"s replaced."""
    for key, value in settings.items():
        section, _, name = key.partition(".")
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})
    return recipe


def suggestions(estimator: Estimator, recipe: Recipe) -> list[Change]:
    """Return the changes of which each alone makes ``recipe`` fit, those that alter the result least first.

    Where none does, all that save something are taken one after another until it fits, and returned as one change; if
    it does not fit then, that is returned all the same.
    """
    need = estimator.need(recipe)
    single, together = [], dict[str, Any]()
    for name, settings in _candidates(estimator, recipe):
        then = changed(recipe, settings)
        if estimator.fits(then):
            single.append(Change(settings, need - estimator.need(then), estimator.need(then), name))
    if single:
        return single
    least = need
    for name, settings in _candidates(estimator, recipe):
        if name:  # a preset holds the same changes
            continue
        more = {**together, **settings}
        now = estimator.need(changed(recipe, more))
        if now < least:
            together, least = more, now
        if estimator.fits(changed(recipe, together)):
            break
    return [Change(together, need - least, least)] if together else []


def _candidates(estimator: Estimator, recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield changes that may need less memory, those that alter the result least first."""
    lora, train = recipe.lora, recipe.train
    if not train.gradient_checkpointing:
        yield "", {"train.gradient_checkpointing": True}
    if train.batch > 1 and train.batch * train.accumulation <= _MOST_ACCUMULATION:
        yield "", {"train.batch": 1, "train.accumulation": train.batch * train.accumulation}
    device = estimator.sd.device
    if estimator.costs(recipe).dtype == torch.float32 and not computes_slowly(device, torch.bfloat16):
        better = pick_dtype("auto", device)
        yield "", {"train.precision": "fp16" if better == torch.float16 else "bf16"}
    if lora.text_encoder:
        yield "", {"lora.text_encoder": False}
    if lora.targets != "attention":
        yield "", {"lora.targets": "attention"}
    if lora.rank > _SMALL_RANK:
        yield "", {"lora.rank": _SMALL_RANK}
    preset = _preset(recipe)
    if preset:
        yield "--preset low-memory", preset
    size = recipe.data.resolution or estimator.size
    for share in _SIDES:
        side = int(size * share) // _GRID * _GRID
        if _GRID <= side < size:
            yield "", {"data.resolution": side}


def _preset(recipe: Recipe) -> dict[str, Any]:
    """Return what the preset low-memory would change in ``recipe``."""
    usual, low = Recipe(), load_recipe(None, preset="low-memory")
    return {
        f"{section}.{name}": value
        for section in ("lora", "train")
        for name, value in getattr(low, section)
        if value != getattr(getattr(usual, section), name) and value != getattr(getattr(recipe, section), name)
    }
