"""Tell before a training begins what memory and time it takes; refuse what cannot fit, and say what would."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import suppress

from lorasmith.dataset.bucket import fit
from lorasmith.dataset.picture import open_rgb
from lorasmith.dataset.read import Example
from lorasmith.errors import DataError, DeviceError
from lorasmith.events import Event, Forecast, Note, Warned
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.train.costs import Costs
from lorasmith.train.estimate import Amounts, Estimator
from lorasmith.train.machine import Machine, look_at
from lorasmith.train.samples import sample_requests
from lorasmith.train.suggest import changed, gib, suggestions

_REFUSED = 1.15  # of the memory there is: the estimate is not that far off
_MIB = 2**20


def foretell(
    sd: StableDiffusion,
    recipe: Recipe,
    size: int,
    training: Sequence[Example],
    held_out: Sequence[Example],
    machine: Machine | None = None,
) -> Generator[Event, None, tuple[Recipe, Forecast]]:
    """Estimate the training's memory and time, and compare the memory with what there is.

    Where the recipe leaves ``gradient_checkpointing`` open, it is decided here: on where the memory does not suffice
    without.

    Args:
        sd: the base, loaded, with no adapter.
        size: side of the training pictures, in pixels.
        machine: instead of the device as it is now.

    Returns:
        The recipe with nothing left open, and the forecast, which is among the events.

    Raises:
        DeviceError: the memory is clearly not enough, with the changes that would make it so; not if the recipe says
            ``ignore_memory_forecast``.
    """
    is_open = recipe.train.gradient_checkpointing is None
    if is_open:
        recipe = changed(recipe, {"train.gradient_checkpointing": False})
    costs = Costs(sd, recipe, size)
    # Counted first: this loads the libraries that a training needs, which are part of the process's memory.
    dtype, _ = costs.dtype, costs.step
    machine = machine or look_at(sd.device, dtype)
    estimator = Estimator(sd, size, _amounts(recipe, size, training, held_out), machine, {recipe: costs})
    if is_open:
        thrifty = changed(recipe, {"train.gradient_checkpointing": True})
        if not estimator.fits(recipe) and estimator.need(thrifty) < estimator.need(recipe):
            yield Note(
                f"Gradient checkpointing is on: without it, {gib(estimator.need(recipe))} of memory would be needed, "
                f"with it {gib(estimator.need(thrifty))}, and there are {gib(machine.room)}."
            )
            recipe = thrifty
    forecast = Forecast(
        memory_mib={phase: need / _MIB for phase, need in estimator.memory(recipe).items()},
        room_mib=machine.room / _MIB,
        seconds=estimator.seconds(recipe),
    )
    yield forecast
    if not estimator.fits(recipe):
        yield _too_much(estimator, recipe)
    return recipe, forecast


def _too_much(estimator: Estimator, recipe: Recipe) -> Warned:
    need, room = estimator.need(recipe), estimator.machine.room
    where = "the computer has" if estimator.sd.device.type == "cpu" else "the GPU has"
    what = f"The training needs about {gib(need)} of memory, and {where} {gib(room)} for it."
    changes = suggestions(estimator, recipe)
    if not changes:
        fix = "No change of the recipe makes it fit: use another device or a smaller base."
    elif not estimator.fits(changed(recipe, changes[-1].settings)):
        fix = f"Not even all of these together make it fit: {changes[-1]}. Use another device or a smaller base."
    elif len(changes) == 1:
        fix = f"Set {changes[0]}."
    else:
        fix = f"Set one of these: {'; '.join(map(str, changes))}."
    if need > _REFUSED * room and not recipe.train.ignore_memory_forecast:
        raise DeviceError(
            what, fix=f"{fix} Or close other programs. To try all the same: train.ignore_memory_forecast = true."
        )
    return Warned(f"{what} To do: {fix}")


def time_left(forecast: Forecast, steps: float, looks: float) -> float:
    """Return the seconds that ``forecast`` gives to these shares of the steps, and of the looks and checkpoints."""
    seconds = forecast.seconds
    return steps * seconds["training"] + looks * (seconds["validation"] + seconds["samples"] + seconds["checkpoints"])


def _amounts(recipe: Recipe, size: int, training: Sequence[Example], held_out: Sequence[Example]) -> Amounts:
    captions = {example.caption for example in (*training, *held_out)} | {""}
    samples = sample_requests(recipe.samples, training, size)
    return Amounts(len(training), len(held_out), len(captions), len(samples), _seconds_to_read(training, size))


def _seconds_to_read(examples: Sequence[Example], size: int) -> float:
    """Return the seconds that the first picture takes to be decoded and fitted."""
    begun = time.perf_counter()
    with suppress(DataError):
        for example in examples[:1]:
            fit(open_rgb(example.path), (size, size))
    return time.perf_counter() - begun
