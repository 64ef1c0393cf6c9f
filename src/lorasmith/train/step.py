"""One training step: denoising score matching on latents (Ho et al. 2020, algorithm 1; Rombach et al. 2022).

Everything random is drawn on the CPU, from a generator seeded by (seed, step), for all pictures of an optimizer step
at once. So the draws depend neither on the device, nor on how the step is cut into forward passes, nor on the
steps before it. Nothing in here waits for the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import TrainSection
from lorasmith.train.encode import LatentSet, TextSet
from lorasmith.train.noise import add_noise, min_snr_weight, target


@dataclass(frozen=True)
class Batch:
    """The pictures of an optimizer step, or a part of them, with what is drawn for each.

    latents, noise: (N, C, h, w), fp32. timesteps: (N,). abar: (N,), fp32, the schedule at the timesteps.
    text: (N, T, D) embeddings, or (N, T) token ids where the text encoder is trained.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    abar: Tensor
    text: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def split(self, size: int) -> Iterator[Batch]:
        """Yield parts of at most ``size`` pictures."""
        for parts in zip(*(getattr(self, field.name).split(size) for field in fields(self)), strict=True):
            yield Batch(*parts)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``, without waiting for the copy."""
        if device.type == "cpu":
            return self
        tensors = [getattr(self, field.name) for field in fields(self)]
        if device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def seed_of(*parts: object) -> int:
    """Return a seed (63 bits) that any change in ``parts`` changes."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def draw(
    indices: Sequence[int],
    latents: LatentSet,
    text: TextSet,
    alphas_cumprod: Tensor,
    settings: TrainSection,
    generator: torch.Generator,
) -> Batch:
    """Return the batch of the pictures at ``indices``: a view, a latent, noise, a timestep and a caption for each.

    Timesteps share one uniform offset (Kingma et al. 2021, appendix I.1): each is uniform over the schedule, and
    together they cover it evenly, which makes the loss and its gradient less noisy.
    """
    n, picture = len(indices), torch.tensor(indices)
    view = torch.randint(latents.views, (n,), generator=generator)
    mean, std = latents.mean[picture, view], latents.std[picture, view]
    sampled = mean + std * torch.randn(mean.shape, generator=generator)
    noise = torch.randn(mean.shape, generator=generator)
    if settings.noise_offset:
        noise = noise + settings.noise_offset * torch.randn((*mean.shape[:2], 1, 1), generator=generator)
    place = (torch.rand(1, generator=generator) + torch.arange(n) / n) % 1
    timesteps = (place * len(alphas_cumprod)).long().clamp(max=len(alphas_cumprod) - 1)
    dropped = torch.rand(n, generator=generator) < settings.caption_dropout
    row = text.rows(latents.examples[i].caption for i in indices).masked_fill(dropped, 0)
    return Batch(sampled, noise, timesteps, alphas_cumprod[timesteps], text.table[row])


def errors(sd: StableDiffusion, batch: Batch) -> Tensor:
    """Return the mean squared error of the UNet's answer for each picture, (N,), fp32."""
    noisy = add_noise(batch.latents, batch.noise, batch.abar)
    text = batch.text if batch.text.is_floating_point() else sd.text_encoder(batch.text)[0]
    answer: Tensor = sd.unet(noisy.to(sd.dtype), batch.timesteps, text).sample
    wanted = target(sd.prediction_type, batch.latents, batch.noise, batch.abar)
    return (answer.float() - wanted).square().mean(dim=(1, 2, 3))


def train_step(
    sd: StableDiffusion,
    batch: Batch,
    settings: TrainSection,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Take one optimizer step on ``batch``, in forward passes of ``settings.batch`` pictures.

    Returns:
        (2,): the mean weighted loss, and the gradient's norm before clipping, still on the device. A step whose
        gradient overflowed fp16 is skipped by the scaler and counts as norm 0.
    """
    loss = torch.zeros((), device=sd.device)
    for part in batch.split(settings.batch):
        part = part.to(sd.device)
        weight = min_snr_weight(sd.prediction_type, part.abar, settings.min_snr_gamma)
        part_loss = (weight * errors(sd, part)).sum() / len(batch)
        torch.autograd.backward(scaler.scale(part_loss))
        loss += part_loss.detach()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or float("inf"))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if scaler.is_enabled():
        norm = norm.nan_to_num(0.0, 0.0, 0.0)
    return torch.stack((loss, norm))
