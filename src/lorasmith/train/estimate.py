"""Memory and time of a training, from the costs of its passes and the rates of the machine.

Memory. Every pass is run on tensors without data, and the bytes alive in it are counted (see ``costs``). On a CPU the
counts of the training pass were within 1 % of those of torch's profiler on real tensors: for the starter, and for a
UNet of SD v1.5's form with (128, 256, 512, 512) channels at 256 px, in fp32 and bf16, with and without checkpointing.
A process takes more than its tensors: the C library's heap has holes, the more the more is taken and given back. On
Linux a tenth of the count and 2.6 % of the bytes that a pass moves, to 384 MiB at most, met the peak of the whole
process (498 to 2,311 MiB) within 11 % in eight settings, up to a UNet of SD v1.5's size at 256 px, and within 10 % in
whole trainings of the starter. On a GPU ``_GPU_WORK_SPACE`` stands for what kernels take; it has not been measured.

Time is arithmetic / (an efficiency x the rate of a matrix product on this machine) + bytes moved / the rate of a sum
+ operations x ``_CALLS`` x the time of the smallest operation. On a GPU, which computes while the next operations are
called, the larger of the last and the rest counts. The constants were calibrated on one core of a CPU with
AVX512-BF16, where they meet the measured seconds of a step within 15 % in six settings; on a GPU they have not been
measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lorasmith.model.assemble import vae_dtype
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.train.costs import Cost, Costs, size_of_parts
from lorasmith.train.encode import pictures_at_once
from lorasmith.train.machine import Machine
from lorasmith.train.validate import strata

_MIB = 2**20
_HOLES, _HOLES_OF_MOVED, _HOLES_AT_MOST = 0.1, 0.026, 384 * _MIB
_GPU_WORK_SPACE = 256 * _MIB
_EFFICIENCY, _EFFICIENCY_FP32, _CALLS = 0.5, 0.75, 8
_DISK = 100e6  # bytes a second that a checkpoint is written with; a cautious guess, it is seconds in all
_AT_ONCE = 4  # sample pictures; the default of ``sample``
_SHARE_FOR_DATA = 0.1  # of a GPU's free memory; see ``placement``
CLOSE = 0.9  # of the memory there is: more is used only with a warning


@dataclass(frozen=True)
class Amounts:
    """How much there is to do: pictures trained on and held out, distinct captions, samples drawn at each look.

    ``preserved`` is the share of the pictures of a step that the base answers too.
    """

    training: int
    held_out: int
    captions: int
    samples: int
    seconds_to_read: float = 0.0
    preserved: float = 0.0


class Estimator:
    """Estimates recipes on one base and machine.

    Args:
        sd: the base, loaded, with no adapter.
        size: side of the training pictures where the recipe does not say, in pixels.
        costs: those of recipes that are known already.
    """

    def __init__(
        self,
        sd: StableDiffusion,
        size: int,
        amounts: Amounts,
        machine: Machine,
        costs: Mapping[Recipe, Costs] | None = None,
    ) -> None:
        self.sd, self.size, self.amounts, self.machine = sd, size, amounts, machine
        self._gpu = sd.device.type == "cuda"
        self._loaded = sum(size_of_parts(sd).values())
        self._costs = dict(costs or {})
        self._known: dict[tuple[object, ...], Cost] = {}

    def costs(self, recipe: Recipe) -> Costs:
        """Return the costs of ``recipe``, found once."""
        if recipe not in self._costs:
            self._costs[recipe] = Costs(self.sd, recipe, recipe.data.resolution or self.size, self._known)
        return self._costs[recipe]

    def need(self, recipe: Recipe) -> int:
        """Return the bytes that ``recipe`` needs at its peak."""
        return max(self.memory(recipe).values())

    def fits(self, recipe: Recipe) -> bool:
        """Return whether there is memory for ``recipe`` with some to spare."""
        return self.need(recipe) <= CLOSE * self.machine.room

    def memory(self, recipe: Recipe) -> dict[str, int]:
        """Return the bytes at the peak of each phase: tensors and work space on a GPU, the process's on a CPU."""
        costs = self.costs(recipe)
        adapter = (4 if recipe.train.ema else 3) * costs.adapter  # with AdamW's two moments and the average
        every = sum(costs.weights.values())
        staying = costs.weights["unet"] + (costs.weights["text_encoder"] if recipe.lora.text_encoder else 0)
        if not self._gpu:
            staying = every
        pictures = self.amounts.training * view_count(recipe) + self.amounts.held_out
        data = costs.latents_size(pictures)
        if self._gpu and data > _SHARE_FOR_DATA * self.machine.free:
            data = 0
        kept = adapter + data
        drawing = costs.drawing(min(_AT_ONCE, max(1, self.amounts.samples)))
        phases = {
            "encoding": every + self._taken(costs.encoding(view_count(recipe)), costs.caption),
            "training": staying + kept + self._taken(costs.step),
            "samples": every + kept + self._taken(drawing, costs.decoding, costs.caption),
        }
        if self.amounts.held_out:
            phases["validation"] = staying + kept + self._taken(costs.validation)
        besides = max(0, self.machine.held - self._loaded)  # libraries, other tensors
        return {phase: besides + size for phase, size in phases.items()}

    def _taken(self, *passes_: Cost) -> int:
        most, moved = max(cost.memory for cost in passes_), max(cost.moved for cost in passes_)
        if self._gpu:
            return most + _GPU_WORK_SPACE
        return int(most * (1 + _HOLES) + min(_HOLES_OF_MOVED * moved, _HOLES_AT_MOST))

    def seconds(self, recipe: Recipe) -> dict[str, float]:
        """Return the seconds of each kind of work, if no picture has been encoded before."""
        costs, amounts, settings = self.costs(recipe), self.amounts, recipe.train

        def unet(cost: Cost) -> float:
            return self._time(cost, costs.dtype)

        def vae(cost: Cost) -> float:
            return self._time(cost, vae_dtype(costs.dtype))

        saves = math.ceil(settings.steps / save_every(recipe))
        looks = saves + 1  # and one at the base
        views = view_count(recipe)
        encoded = amounts.training * math.ceil(views / pictures_at_once(costs.size)) * vae(costs.encoding(views))
        encoded += amounts.held_out * vae(costs.encoding(1))
        encoded += (amounts.training + amounts.held_out) * amounts.seconds_to_read
        captions = 0 if recipe.lora.text_encoder else amounts.captions
        optimizer = 10 * costs.adapter / self.machine.bandwidth  # reads and writes of clipping and AdamW
        batches = math.ceil(amounts.samples / _AT_ONCE)
        evaluations = recipe.samples.steps * (2 if recipe.samples.sampler == "heun" else 1)
        drawn = batches * evaluations * unet(costs.drawing(min(_AT_ONCE, max(1, amounts.samples))))
        drawn += amounts.samples * (vae(costs.decoding) + 2 * unet(costs.caption))
        asked = strata(amounts.held_out) * amounts.held_out
        validated = math.ceil(asked / (2 * settings.batch)) * unet(costs.validation) if asked else 0.0
        a_pass = unet(costs.step) + (amounts.preserved / 2 * unet(costs.validation) if amounts.preserved else 0.0)
        return {
            "encoding": encoded + captions * unet(costs.caption),
            "training": settings.steps * (settings.accumulation * a_pass + optimizer),
            "validation": looks * validated,
            "samples": looks * drawn,
            "checkpoints": saves * 3 * costs.adapter / _DISK,
        }

    def _time(self, cost: Cost, dtype: torch.dtype) -> float:
        machine = self.machine
        rate = _EFFICIENCY_FP32 * machine.flops_fp32 if dtype == torch.float32 else _EFFICIENCY * machine.flops
        computing = cost.flops / rate + cost.moved / machine.bandwidth
        calling = cost.operations * _CALLS * machine.overhead
        return max(computing, calling) if self._gpu else computing + calling


def save_every(recipe: Recipe) -> int:
    """Return how many steps lie between two checkpoints."""
    return recipe.train.save_every or math.ceil(recipe.train.steps / 5)


def view_count(recipe: Recipe) -> int:
    """Return how many views of a picture are encoded."""
    return recipe.data.crops if recipe.data.crop == "random" else 1 + recipe.data.flip
