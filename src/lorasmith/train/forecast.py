"""Tell before a training begins what memory and time it takes; refuse what cannot fit, and say what would."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from lorasmith.dataset.bucket import fit
from lorasmith.dataset.picture import open_rgb
from lorasmith.dataset.read import Example
from lorasmith.errors import DataError, DeviceError
from lorasmith.events import Event, Forecast, Note, Warned
from lorasmith.model.lora import detach
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.train.costs import Costs
from lorasmith.train.estimate import Amounts, Estimator
from lorasmith.train.machine import Machine, look_at, memory_alone
from lorasmith.train.memory_guard import Room, is_out_of_memory, told
from lorasmith.train.ranks import ALONE, Ranks
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
    ranks: Ranks = ALONE,
) -> Generator[Event, None, tuple[Recipe, Forecast]]:
    """Estimate the training's memory and time, and compare the memory with what there is.

    Where the recipe leaves ``gradient_checkpointing`` open, it is decided here: on where the memory does not suffice
    without.

    Args:
        sd: the base, loaded, with no adapter.
        size: side of the training pictures, in pixels.
        machine: instead of the device as it is now.
        ranks: the processes that share the work. Everything told is then of one of them; those of one machine share
            its main memory.

    Returns:
        The recipe with nothing left open, and the forecast, which is among the events.

    Raises:
        DeviceError: the memory is clearly not enough, with the changes that would make it so; not if the recipe says
            ``ignore_memory_forecast``.
    """
    is_open = recipe.train.gradient_checkpointing is None
    if is_open:
        recipe = changed(recipe, {"train.gradient_checkpointing": False})
    whole, recipe = recipe, _share(recipe, ranks)
    costs = Costs(sd, recipe, size)
    # Counted first: this loads the libraries that a training needs, which are part of the process's memory.
    dtype, _ = costs.dtype, costs.step
    machine = machine or look_at(sd.device, dtype)
    if not ranks.alone:
        yield Note(f"The forecast is for each of the {ranks.world} processes.")
        if sd.device.type == "cpu":
            machine = replace(machine, free=machine.free // ranks.locals)
    estimator = Estimator(sd, size, _amounts(recipe, size, training, held_out, ranks), machine, {recipe: costs})
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
        yield _too_much(estimator, recipe, whole)
    settled = {"train.gradient_checkpointing": recipe.train.gradient_checkpointing}
    return changed(whole, settled), forecast


def _share(recipe: Recipe, ranks: Ranks) -> Recipe:
    """Return the recipe that has the passes of the process with the largest share of a step."""
    settings = recipe.train
    share = ranks.largest_share(settings.batch * settings.accumulation)
    batch = min(settings.batch, share)
    return changed(recipe, {"train.batch": batch, "train.accumulation": -(-share // batch)})


def _too_much(estimator: Estimator, recipe: Recipe, whole: Recipe) -> Warned:
    """Return what to say. ``recipe`` has the share of one process, of ``whole``."""
    need, room = estimator.need(recipe), estimator.machine.room
    what = f"The training needs about {gib(need)} of memory, and {_where(estimator)} {gib(room)} for it."
    fix = _changes_that_fit(estimator, recipe, whole)
    if need > _REFUSED * room and not recipe.train.ignore_memory_forecast:
        raise DeviceError(
            what, fix=f"{fix} Or close other programs. To try all the same: train.ignore_memory_forecast = true."
        )
    return Warned(f"{what} To do: {fix}")


def _where(estimator: Estimator) -> str:
    return "the computer has" if estimator.sd.device.type == "cpu" else "the GPU has"


def _changes_that_fit(estimator: Estimator, recipe: Recipe, whole: Recipe) -> str:
    """Return what to do, with what each change saves. ``recipe`` has the share of one process, of ``whole``."""
    changes = suggestions(estimator, recipe)
    split = {"train.accumulation": whole.train.batch * whole.train.accumulation}  # among all, not of one's share
    changes = [
        replace(c, settings={**c.settings, **(split if split.keys() <= c.settings.keys() and not c.name else {})})
        for c in changes
    ]
    if not changes:
        return "No change of the recipe makes it fit: use another device or a smaller base."
    if not estimator.fits(changed(recipe, changes[-1].settings)):
        return f"Not even all of these together make it fit: {changes[-1]}. Use another device or a smaller base."
    return f"Set {changes[0]}." if len(changes) == 1 else f"Set one of these: {'; '.join(map(str, changes))}."


def explained(
    events: Iterator[Event], sd: StableDiffusion, room: Room, size: int, parts: Sequence[Sequence[Example]]
) -> Iterator[Event]:
    """Pass on the events of a training's steps; a want of memory that smaller passes could not mend is explained.

    Args:
        sd: with the adapter attached, which is gone if there is such a want.
        size: side of the training pictures, in pixels.
        parts: the pictures to train on, and those held out.

    Raises:
        DeviceError: in the place of what says that there is no memory; it says what would fit.
    """
    try:
        yield from events
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step
        yield from told(room, ALONE)  # the other processes are waiting for this one, and will see it end
        raise _shortage(sd, room, size, parts) from error


def _shortage(sd: StableDiffusion, room: Room, size: int, parts: Sequence[Sequence[Example]]) -> DeviceError:
    recipe = room.recipe()
    room.forget()
    detach(sd)
    gc.collect()
    training, held_out = parts
    machine = memory_alone(sd.device)
    estimator = Estimator(sd, size, _amounts(recipe, size, training, held_out, ALONE), machine)
    need = estimator.need(recipe)
    if need < machine.room:  # it has turned out not to suffice, so only what needs less than now can
        estimator.machine = replace(machine, free=need - machine.held)
    settings = recipe.train
    how = f"{settings.batch} picture{'s' * (settings.batch != 1)} in a pass"
    how += " and gradient checkpointing" * bool(settings.gradient_checkpointing)
    return DeviceError(
        f"The memory does not suffice, with {how}. The forecast for that is {gib(need)}, and {_where(estimator)} "
        f"{gib(machine.room)} for it.",
        fix=f"{_changes_that_fit(estimator, recipe, recipe)} Or close other programs. The checkpoints before are good.",
    )


def time_left(forecast: Forecast, steps: float, looks: float) -> float:
    """Return the seconds that ``forecast`` gives to these shares of the steps, and of the looks and checkpoints."""
    seconds = forecast.seconds
    return steps * seconds["training"] + looks * (seconds["validation"] + seconds["samples"] + seconds["checkpoints"])


def _amounts(
    recipe: Recipe, size: int, training: Sequence[Example], held_out: Sequence[Example], ranks: Ranks
) -> Amounts:
    captions = {example.caption for example in (*training, *held_out)} | {""}
    samples = sample_requests(recipe.samples, training, size)
    training_, held, texts, drawn = (ranks.largest_share(len(x)) for x in (training, held_out, captions, samples))
    preserved = _preserved(training, recipe.data.balance == "class")
    return Amounts(training_, held, texts, drawn, _seconds_to_read(training, size), preserved)


def _preserved(training: Sequence[Example], balanced: bool) -> float:
    """Return the share of pictures to preserve in what is drawn."""
    which = list({e.label: e.preserved for e in training}.values()) if balanced else [e.preserved for e in training]
    return sum(which) / len(which) if which else 0.0


def _seconds_to_read(examples: Sequence[Example], size: int) -> float:
    """Return the seconds that the first picture takes to be decoded and fitted."""
    begun = time.perf_counter()
    with suppress(DataError):
        for example in examples[:1]:
            fit(open_rgb(example.path), (size, size))
    return time.perf_counter() - begun
