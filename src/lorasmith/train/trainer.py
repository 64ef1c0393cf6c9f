"""What changes from step to step: the adapter, the optimizer, and the place in the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasmith.dataset.sampler import BalancedSampler
from lorasmith.events import Event
from lorasmith.model.lora import (
    Lora,
    LoraConfig,
    attach,
    lora_parameters,
    lora_state,
    reset_lora,
    set_lora_weights,
)
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.train.average import Average
from lorasmith.train.checkpoint import read_checkpoint, write_checkpoint
from lorasmith.train.compiled import compile_unet
from lorasmith.train.cpu_kernels import fast_kernels
from lorasmith.train.encode import LatentSet, TextSet
from lorasmith.train.guards import Watch
from lorasmith.train.memory_guard import Room
from lorasmith.train.placement import Supply, Tables, place
from lorasmith.train.ranks import ALONE, Ranks
from lorasmith.train.rollback import RATE
from lorasmith.train.schedule import multiplier
from lorasmith.train.step import Draws, draw, seed_of, train_step


class Trainer:
    """A LoRA in training: attached to ``sd``, which it leaves in training mode.

    Args:
        sd: the base, with no adapter yet.
        recipe: how to train.
        latents, text: what to train on.
        ranks: the processes that train it together. Each draws the whole step and computes its share of the pictures.

    Attributes:
        watch: what has been seen of the steps. room: what their passes look like.
        rolled_back: how often the training was rolled back; slowings: how many of these still slow it down.
    """

    def __init__(
        self, sd: StableDiffusion, recipe: Recipe, latents: LatentSet, text: TextSet, ranks: Ranks = ALONE
    ) -> None:
        self.sd, self.recipe, self.latents, self.text, self.ranks = sd, recipe, latents, text, ranks
        settings = recipe.train
        if sd.device.type == "cuda":  # tensor cores want channels last; on a CPU it was measured to change nothing
            sd.unet.to(memory_format=torch.channels_last)
        self.parameters = attach(sd, _lora_config(recipe), settings.seed)
        # The fused kernels update all parameters at once and take the loss scale without waiting for the device.
        fused = sd.device.type in ("cpu", "cuda")
        self.average = Average(self.parameters, settings.ema) if settings.ema else None
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=settings.weight_decay, fused=fused)
        self.scaler = self._new_scaler()
        self.watch = Watch(settings.rollback_after, self.scaler.is_enabled())
        self.rolled_back = self.slowings = 0
        self.per_step = settings.batch * settings.accumulation
        self.sampler = self._new_sampler()
        self.supply = Supply(place(Tables(latents, text), sd.device), sd.device, self._draw)
        self.unet: Callable[..., Any] = sd.unet
        self.step = 0
        sd.unet.train()
        sd.text_encoder.train(recipe.lora.text_encoder)
        self.room = Room(sd, recipe, self.parameters)

    def advance(self) -> Tensor:
        """Take one optimizer step; return its loss and gradient norm, (2,), still on the device."""
        self.step += 1
        settings = self.recipe.train
        factor = multiplier(settings.schedule, self.step, settings.steps, settings.warmup) * RATE**self.slowings
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        if self.recipe.lora.dropout:
            own = () if self.ranks.alone else (self.ranks.rank,)  # no two processes drop the same
            self.room.seed = seed_of(settings.seed, "dropout", self.step, *own)
        self.room.step = self.step
        batch = self.supply.take(self.step)
        with fast_kernels(self.sd.device, self.sd.dtype):
            figures = train_step(
                self.sd,
                batch,
                settings,
                self.parameters,
                self.optimizer,
                self.scaler,
                self.unet,
                self.ranks,
                self.per_step,
                self.room,
            )
        if self.average:
            self.average.update(self.step)
        return figures

    def prepare(self) -> Iterator[Event]:
        """Compile the UNet, if the recipe says so, which takes minutes; where that fails, warn and do without."""
        if self.recipe.train.compile:
            first = next(self.supply.take(self.step + 1).split(self.recipe.train.batch))
            self.unet = yield from compile_unet(self.sd, first, self.parameters)

    @property
    def learning_rate(self) -> float:
        """The UNet adapter's learning rate in the latest step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def lora(self) -> Lora:
        """Return the adapter as it is to be used now."""
        with self.averaged():
            return lora_state(self.sd)

    def averaged(self) -> AbstractContextManager[None]:
        """Let the adapter be, for the block, what it is to be used as: the moving average, where there is one."""
        return self.average.in_place() if self.average else nullcontext()

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write everything needed to go on into ``folder``; see ``write_checkpoint`` for what it raises."""
        state = {
            "step": self.step,
            "sampler": {"drawn": self.step * self.per_step},
            "scaler": self.scaler.state_dict(),
            "watch": self.watch.state(),
            "rollbacks": self.rolled_back,
        }
        weights = self.parameters if self.average else ()
        write_checkpoint(folder, self.lora(), self.optimizer, weights, state, metadata)

    def restore(self, folder: Path) -> None:
        """Go on from what ``save`` wrote, of the same recipe and data; see ``read_checkpoint`` for what it raises."""
        saved = read_checkpoint(folder)
        state = saved.state
        set_lora_weights(self.sd, saved.lora)
        if self.average:
            self.average.begin_at(self.parameters)
        if saved.weights:  # then the LoRA was their average
            with torch.no_grad():
                for parameter, value in zip(self.parameters, saved.weights, strict=True):
                    parameter.copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": saved.moments, "param_groups": groups})
        if state["scaler"]:  # empty where no loss was scaled
            self.scaler.load_state_dict(state["scaler"])
        if "watch" in state:
            self.watch.restore(state["watch"])
        self.step = state["step"]

    def begin_again(self) -> None:
        """Go back to before the first step."""
        reset_lora(self.sd, self.recipe.train.seed)
        if self.average:
            self.average.begin_at(self.parameters)
        self.optimizer.state.clear()
        self.scaler = self._new_scaler()
        self.watch = Watch(self.watch.limit, self.watch.scaled)
        self.step = 0

    def pictures(self, step: int) -> tuple[str, ...]:
        """Return the names of the pictures of a step, as class/file, each once."""
        examples = self.latents.examples
        sampler = self._new_sampler()  # the other is in use by whoever draws ahead
        sampler.restore({"drawn": (step - 1) * self.per_step})
        return tuple(dict.fromkeys(f"{examples[i].label}/{examples[i].path.name}" for i in next(sampler)))

    def is_finite(self) -> bool:
        """Return whether all weights of the adapter are finite; waits for the device."""
        return bool(torch.stack([p.detach().isfinite().all() for p in self.parameters]).all())

    def is_zero(self) -> bool:
        """Return whether the adapter changes nothing, all of its B matrices being zero; waits for the device."""
        return not bool(torch.stack([p.detach().any() for p in self.parameters[1::2]]).any())

    def _draw(self, step: int) -> Draws:
        """Draw what ``step`` needs, a function of the seed and the step alone."""
        settings = self.recipe.train
        self.sampler.restore({"drawn": (step - 1) * self.per_step})
        generator = torch.Generator().manual_seed(seed_of(settings.seed, "draw", step))
        draws = draw(next(self.sampler), self.latents, self.text, self.sd.alphas_cumprod, settings, generator)
        return draws if self.ranks.alone else draws.part(*self.ranks.share(len(draws)))

    def _new_sampler(self) -> BalancedSampler:
        labels = [example.label for example in self.latents.examples]
        balance = self.recipe.data.balance == "class"
        return BalancedSampler(labels, self.per_step, self.recipe.train.seed, balance)

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.sd.device.type, enabled=self.sd.dtype == torch.float16)

    def _groups(self) -> list[dict[str, Any]]:
        settings = self.recipe.train
        text_rate = settings.text_encoder_learning_rate or settings.learning_rate / 4
        rates = {"unet": settings.learning_rate, "text_encoder": text_rate}
        parts = lora_parameters(self.sd)
        return [{"params": own, "lr": rates[part], "full_lr": rates[part]} for part, own in parts.items() if own]


def _lora_config(recipe: Recipe) -> LoraConfig:
    settings = recipe.lora
    return LoraConfig(
        rank=settings.rank,
        alpha=settings.alpha if settings.alpha is not None else float(settings.rank),
        dropout=settings.dropout,
        targets=settings.targets,
        text_encoder=settings.text_encoder,
    )
