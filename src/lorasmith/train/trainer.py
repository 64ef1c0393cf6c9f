"""What changes from step to step: the adapter, the optimizer, and the place in the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasmith.dataset.sampler import BalancedSampler
from lorasmith.events import Event
from lorasmith.model.lora import Lora, LoraConfig, attach, lora_parameters, lora_state, set_lora_weights
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.train.checkpoint import read_checkpoint, write_checkpoint
from lorasmith.train.compiled import compile_unet
from lorasmith.train.cpu_kernels import fast_kernels
from lorasmith.train.encode import LatentSet, TextSet
from lorasmith.train.placement import Supply, Tables, place
from lorasmith.train.schedule import multiplier
from lorasmith.train.step import Draws, draw, seed_of, train_step


class Trainer:
    """A LoRA in training: attached to ``sd``, which it leaves in training mode.

    Args:
        sd: the base, with no adapter yet.
        recipe: how to train.
        latents, text: what to train on.
    """

    def __init__(self, sd: StableDiffusion, recipe: Recipe, latents: LatentSet, text: TextSet) -> None:
        self.sd, self.recipe, self.latents, self.text = sd, recipe, latents, text
        settings = recipe.train
        if sd.device.type == "cuda":  # tensor cores want channels last; on a CPU it was measured to change nothing
            sd.unet.to(memory_format=torch.channels_last)
        self.parameters = attach(sd, _lora_config(recipe), settings.seed)
        # The fused kernels update all parameters at once and take the loss scale without waiting for the device.
        fused = sd.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=settings.weight_decay, fused=fused)
        self.scaler = torch.amp.GradScaler(sd.device.type, enabled=sd.dtype == torch.float16)
        labels = [example.label for example in latents.examples]
        self.per_step = settings.batch * settings.accumulation
        self.sampler = BalancedSampler(labels, self.per_step, settings.seed, recipe.data.balance == "class")
        self.supply = Supply(place(Tables(latents, text), sd.device), sd.device, self._draw)
        self.unet: Callable[..., Any] = sd.unet
        self.step = 0
        sd.unet.train()
        sd.text_encoder.train(recipe.lora.text_encoder)
        if settings.gradient_checkpointing:
            sd.unet.enable_gradient_checkpointing()
            if recipe.lora.text_encoder:
                sd.text_encoder.gradient_checkpointing_enable({"use_reentrant": False})

    def advance(self) -> Tensor:
        """Take one optimizer step; return its loss and gradient norm, (2,), still on the device."""
        self.step += 1
        settings = self.recipe.train
        factor = multiplier(settings.schedule, self.step, settings.steps, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        if self.recipe.lora.dropout:
            torch.manual_seed(seed_of(settings.seed, "dropout", self.step))
        batch = self.supply.take(self.step)
        with fast_kernels(self.sd.device, self.sd.dtype):
            return train_step(self.sd, batch, settings, self.parameters, self.optimizer, self.scaler, self.unet)

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
        """Return the adapter's weights as they are now."""
        return lora_state(self.sd)

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write everything needed to go on into ``folder``; see ``write_checkpoint`` for what it raises."""
        state = {"step": self.step, "sampler": {"drawn": self.step * self.per_step}, "scaler": self.scaler.state_dict()}
        write_checkpoint(folder, self.lora(), self.optimizer, state, metadata)

    def restore(self, folder: Path) -> None:
        """Go on from what ``save`` wrote, of the same recipe and data; see ``read_checkpoint`` for what it raises."""
        lora, moments, state = read_checkpoint(folder)
        set_lora_weights(self.sd, lora)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if state["scaler"]:  # empty where no loss was scaled
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def _draw(self, step: int) -> Draws:
        """Draw what ``step`` needs, a function of the seed and the step alone."""
        settings = self.recipe.train
        self.sampler.restore({"drawn": (step - 1) * self.per_step})
        generator = torch.Generator().manual_seed(seed_of(settings.seed, "draw", step))
        return draw(next(self.sampler), self.latents, self.text, self.sd.alphas_cumprod, settings, generator)

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
