"""One training step: denoising score matching on latents (Ho et al. 2020, algorithm 1; Rombach et al. 2022).

Everything random is drawn on the CPU, from a generator seeded by (seed, step), for all pictures of an optimizer step
at once. So the draws depend neither on the device, nor on how the step is cut into forward passes, nor on the
steps before it. Nothing in here waits for the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorasmith.model.lora import without_lora
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import TrainSection
from lorasmith.train.encode import LatentSet, TextSet
from lorasmith.train.noise import add_noise, min_snr_weight, target
from lorasmith.train.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from typing import Self

    from lorasmith.train.memory_guard import Room


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """Tensors with one row for each picture. The last ``preserved`` of these shall stay what the base makes of them.

    That is a number of Python's, so that no one has to ask the device for it.
    """

    preserved: int = 0

    def __len__(self) -> int:
        return len(next(iter(self._tensors().values())))

    def split(self, size: int) -> Iterator[Self]:
        """Yield parts of at most ``size`` pictures."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)

    def part(self, start: int, stop: int) -> Self:
        """Return the pictures from ``start`` to before ``stop``."""
        among = max(0, min(stop, len(self)) - max(start, len(self) - self.preserved))
        return replace(self._each(lambda tensor: tensor[start:stop]), preserved=among)

    def pinned(self) -> Self:
        """Return the same in memory from which a GPU can copy while the CPU goes on."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """Return the same on ``device``, without waiting for the copy."""
        if next(iter(self._tensors().values())).device.type == device.type:
            return self
        ready = self.pinned() if device.type == "cuda" else self
        return ready._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._tensors().items()}
        return replace(self, **changed)

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "preserved"}


@dataclass(frozen=True)
class Draws(_Tensors):
    """What is drawn for each picture of an optimizer step.

    picture, view, row: (N,), which latent distribution and which caption. spread, noise: (N, C, h, w), fp32, standard
    normal but for the noise offset. timesteps: (N,). abar: (N,), fp32, the schedule at the timesteps.
    """

    picture: Tensor
    view: Tensor
    row: Tensor
    spread: Tensor
    noise: Tensor
    timesteps: Tensor
    abar: Tensor

    def look_up(self, latents: LatentSet, text: TextSet) -> Batch:
        """Return the batch of what was drawn from ``latents`` and ``text``, on their device, where this must be."""
        mean, std = latents.mean[self.picture, self.view], latents.std[self.picture, self.view]
        sampled, embedding = mean + std * self.spread, text.table[self.row]
        return Batch(sampled, self.noise, self.timesteps, self.abar, embedding, preserved=self.preserved)


@dataclass(frozen=True)
class Batch(_Tensors):
    """The pictures of an optimizer step, or a part of them.

    latents, noise: (N, C, h, w), fp32. timesteps: (N,). abar: (N,), fp32, the schedule at the timesteps.
    text: (N, T, D) embeddings, or (N, T) token ids where the text encoder is trained.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    abar: Tensor
    text: Tensor


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
) -> Draws:
    """Return what a step on the pictures at ``indices`` draws: a view, a latent, noise, a timestep and a caption each.

    Timesteps share one uniform offset (Kingma et al. 2021, appendix I.1): each is uniform over the schedule, and
    together they cover it evenly, which makes the loss and its gradient less noisy. Pictures to preserve come last.
    """
    preserved = {i for i in indices if latents.examples[i].preserved}
    indices = sorted(indices, key=preserved.__contains__)
    n, picture = len(indices), torch.tensor(indices)
    shape = (n, *latents.mean.shape[2:])
    view = torch.randint(latents.views, (n,), generator=generator)
    spread = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if settings.noise_offset:
        noise = noise + settings.noise_offset * torch.randn((*shape[:2], 1, 1), generator=generator)
    place = (torch.rand(1, generator=generator) + torch.arange(n) / n) % 1
    timesteps = (place * len(alphas_cumprod)).long().clamp(max=len(alphas_cumprod) - 1)
    dropped = torch.rand(n, generator=generator) < settings.caption_dropout
    row = text.rows(latents.examples[i].caption for i in indices).masked_fill(dropped, 0)
    last = sum(i in preserved for i in indices)
    return Draws(picture, view, row, spread, noise, timesteps, alphas_cumprod[timesteps], preserved=last)


def errors(sd: StableDiffusion, batch: Batch, unet: Callable[..., Any] | None = None) -> Tensor:
    """Return the mean squared error of the UNet's answer for each picture, (N,), fp32.

    Args:
        unet: computes what ``sd.unet`` does, in its place.
    """
    noisy = add_noise(batch.latents, batch.noise, batch.abar).to(sd.dtype)
    wanted = target(sd.prediction_type, batch.latents, batch.noise, batch.abar)
    if batch.preserved:
        wanted = torch.cat([wanted[: -batch.preserved], _base_answer(sd, noisy, batch)])
    answer = _answer(sd.unet if unet is None else unet, sd, noisy, batch)
    return (answer - wanted).square().mean(dim=(1, 2, 3))


def _answer(unet: Callable[..., Any], sd: StableDiffusion, noisy: Tensor, batch: Batch) -> Tensor:
    text = batch.text if batch.text.is_floating_point() else sd.text_encoder(batch.text)[0]
    return unet(noisy, batch.timesteps, text, return_dict=False)[0].float()  # type: ignore[no-any-return]


@torch.no_grad()
def _base_answer(sd: StableDiffusion, noisy: Tensor, batch: Batch) -> Tensor:
    """Return what the base without the LoRA answers for the pictures to preserve, which are the last."""
    last = batch.part(len(batch) - batch.preserved, len(batch))
    with without_lora(sd):
        return _answer(sd.unet, sd, noisy[-batch.preserved :], last)


def train_step(
    sd: StableDiffusion,
    batch: Batch,
    settings: TrainSection,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    unet: Callable[..., Any] | None = None,
    ranks: Ranks = ALONE,
    pictures: int | None = None,
    room: Room | None = None,
) -> Tensor:
    """Take one optimizer step on ``batch``, in forward passes of ``settings.batch`` pictures.

    Args:
        unet: as for ``errors``.
        ranks: the processes that share the step; ``batch`` is this one's part of its ``pictures``.
        room: makes the forward passes smaller where the memory does not suffice.

    Returns:
        (2,): the mean weighted loss, and the gradient's norm before clipping, still on the device. Where either is
        not finite, the step has been skipped: the weights and the optimizer's state are as before it.
    """

    def gradient(at_once: int) -> Tensor:
        loss = torch.zeros((), device=sd.device)
        for part in batch.split(at_once):
            part = part.to(sd.device)
            weight = min_snr_weight(sd.prediction_type, part.abar, settings.min_snr_gamma)
            weight[len(part) - part.preserved :] *= settings.preserve_weight
            part_loss = (weight * errors(sd, part, unet)).sum() / (pictures or len(batch))
            torch.autograd.backward(scaler.scale(part_loss))
            loss += part_loss.detach()
        return loss

    loss = room.fit(gradient, len(batch)) if room else gradient(settings.batch)
    loss = ranks.sum_gradients(parameters, loss)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or float("inf"))
    figures = torch.stack((loss, norm))
    _update_if_finite(optimizer, figures)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return figures


def _update_if_finite(optimizer: torch.optim.Optimizer, figures: Tensor) -> None:
    """Take the optimizer's step, or none if one of ``figures`` is not finite; fused kernels know without waiting.

    They read ``found_inf`` on the device, as GradScaler sets it for them. It would do the same, but for gradients that
    overflow fp16 alone; these make the norm infinite, so that they are among what is skipped here.
    """
    skip = (~figures.isfinite().all()).float()
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif not skip:
        optimizer.step()
