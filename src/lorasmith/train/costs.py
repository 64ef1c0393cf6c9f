"""What each pass of a training costs, in bytes and arithmetic, from the model itself.

The passes run on copies of the base without data (see ``tally``), with the recipe's own adapter, batch, size,
number format and gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lorasmith.model.lora import LoraConfig, attach
from lorasmith.model.stable_diffusion import StableDiffusion, pick_dtype
from lorasmith.recipe.schema import Recipe
from lorasmith.train.cpu_kernels import fast_kernels
from lorasmith.train.encode import pictures_at_once
from lorasmith.train.step import Batch, errors
from lorasmith.train.tally import Tally, fused_attention, size_of, without_data


@dataclass(frozen=True)
class Cost:
    """What one pass needs.

    Attributes:
        memory: bytes of the tensors that it makes, at their peak.
        flops: floating-point operations of matrix products, convolutions and attention.
        moved: bytes that its operations read and write.
        operations: how many there are.
    """

    memory: int
    flops: float
    moved: int
    operations: int


class Costs:
    """The costs of ``recipe``'s passes on ``sd``, which stays as it is; each is found when first asked for.

    Args:
        sd: the base, with no adapter.
        size: side of the training pictures, in pixels.
        known: where costs are kept that other recipes on the same base have too.

    Attributes:
        weights: bytes of each part ("unet", "vae", "text_encoder") in the recipe's number format.
        adapter: bytes of the LoRA's weights; its gradient takes as much, AdamW's moments twice as much.
    """

    def __init__(
        self, sd: StableDiffusion, recipe: Recipe, size: int, known: dict[tuple[object, ...], Cost] | None = None
    ) -> None:
        self.recipe, self.size, self._device = recipe, size, sd.device
        self._known = {} if known is None else known
        self.dtype = pick_dtype(recipe.train.precision, sd.device)
        lora = recipe.lora
        config = LoraConfig(lora.rank, float(lora.rank), lora.dropout, lora.targets, lora.text_encoder)
        with torch.device("meta"):
            parts = {name: without_data(getattr(sd, name)) for name in ("unet", "vae", "text_encoder")}
            self._sd = replace(sd, **parts, originals={}).to("meta", self.dtype)
            self.weights = size_of_parts(self._sd)
            self._parameters = attach(self._sd, config)
        self.adapter = size_of(self._parameters)

    @cached_property
    def step(self) -> Cost:
        """The forward and backward pass of one batch, with the gradient that it leaves."""
        sd, settings = self._sd, self.recipe.train
        if settings.gradient_checkpointing:
            sd.unet.enable_gradient_checkpointing()
            if self.recipe.lora.text_encoder:
                sd.text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
        sd.unet.train()
        sd.text_encoder.train(self.recipe.lora.text_encoder)
        gradient = settings.accumulation > 1  # of the passes before
        for parameter in self._parameters:
            parameter.grad = torch.empty_like(parameter) if gradient else None

        def work() -> None:
            batch = self._batch(settings.batch)  # held through the backward pass, as in a training
            with fast_kernels(self._device, self.dtype):
                torch.autograd.backward(errors(sd, batch).mean())

        cost = _cost(work)
        return replace(cost, memory=cost.memory + self.adapter) if gradient else cost

    @cached_property
    def validation(self) -> Cost:
        """One forward pass of the validation, of twice the batch."""
        count = 2 * self.recipe.train.batch
        return self._without_gradient(
            ("validation", count, self.recipe.lora), lambda: errors(self._sd, self._batch(count))
        )

    def drawing(self, count: int) -> Cost:
        """One evaluation of the UNet for ``count`` sample pictures at once, in proportion to the validation."""
        seen = count * (2 if self.recipe.samples.guidance > 1 else 1)
        share = seen / (2 * self.recipe.train.batch)
        cost = self.validation
        return Cost(int(cost.memory * share), cost.flops * share, int(cost.moved * share), cost.operations)

    @cached_property
    def decoding(self) -> Cost:
        """The VAE's way from one latent to a picture."""
        sd = self._sd
        return self._without_gradient(
            ("decoding",), lambda: sd.vae.decode(self._latents(1).to(sd.vae.dtype)).sample.float().add(1).clamp(0, 1)
        )

    def encoding(self, views: int) -> Cost:
        """The VAE's way from as many views of a picture as it takes at once to their latents."""
        count = min(views, pictures_at_once(self.size))
        pixels = (count, self.size, self.size, 3)
        return self._without_gradient(
            ("encoding", count), lambda: self._sd.encode_pictures(torch.empty(pixels, dtype=torch.uint8))
        )

    @cached_property
    def caption(self) -> Cost:
        """The text encoder's way from one caption to its embedding."""
        return self._without_gradient(("caption",), lambda: self._sd.encode_text([""]))

    def latents_size(self, pictures: int) -> int:
        """Return the bytes of the cached mean and standard deviation of so many views."""
        return 2 * pictures * size_of([torch.empty(self._latent_shape, device="meta")])

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        edge = self.size // self._sd.vae_factor
        return (self._sd.latent_channels, edge, edge)

    def _latents(self, count: int) -> Tensor:
        return torch.empty(count, *self._latent_shape)

    def _text(self, count: int) -> Tensor:
        return torch.empty(count, self._sd.max_tokens, self._sd.text_encoder.config.hidden_size, dtype=self.dtype)

    def _batch(self, count: int) -> Batch:
        tokens = torch.empty(count, self._sd.max_tokens, dtype=torch.long)
        return Batch(
            latents=self._latents(count),
            noise=self._latents(count),
            timesteps=torch.empty(count, dtype=torch.long),
            abar=torch.empty(count),
            text=tokens if self.recipe.lora.text_encoder else self._text(count),
        )

    def _without_gradient(self, key: tuple[object, ...], work: Callable[[], object]) -> Cost:
        key = (*key, self.size, self.dtype)
        if key not in self._known:
            self._sd.unet.eval()
            self._sd.text_encoder.eval()
            with torch.no_grad():
                self._known[key] = _cost(work)
        return self._known[key]


def _cost(work: Callable[[], object]) -> Cost:
    with torch.device("meta"), fused_attention(), Tally() as tally:
        work()
    return Cost(tally.peak, tally.flops, tally.moved, tally.operations)


def size_of_parts(sd: StableDiffusion) -> dict[str, int]:
    """Return the bytes of the weights of "unet", "vae" and "text_encoder"."""
    parts = {name: getattr(sd, name) for name in ("unet", "vae", "text_encoder")}
    return {name: size_of(part.parameters()) + size_of(part.buffers()) for name, part in parts.items()}
