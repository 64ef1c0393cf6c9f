"""The validation loss: held-out pictures, fixed noise, the same question at every checkpoint and for the base."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lorasmith.events import Event, Progress
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.train.encode import LatentSet, TextSet
from lorasmith.train.ranks import ALONE, Ranks
from lorasmith.train.step import Batch, errors, seed_of

_TIMESTEPS = 8  # of each picture; fewer where that makes more than _FORWARDS in all
_FORWARDS = 256


def strata(count: int) -> int:
    """Return at how many timesteps each of ``count`` held-out pictures is asked about."""
    return max(1, min(_TIMESTEPS, _FORWARDS // max(1, count)))


def validation_batch(latents: LatentSet, text: TextSet, alphas_cumprod: Tensor) -> Batch:
    """Return everything the validation loss is measured on.

    Each picture's noise comes from its content. Its timesteps are stratified: one in each equal part of the schedule,
    at a place inside the part that differs from picture to picture.
    """
    count = len(latents.examples)
    times_each = strata(count)
    parts = []
    for place, i in enumerate(sorted(range(count), key=lambda i: latents.examples[i].sha256)):
        example, mean, std = latents.examples[i], latents.mean[i, 0], latents.std[i, 0]
        generator = torch.Generator().manual_seed(seed_of("validation", example.sha256))
        sampled, noise = torch.randn((2, times_each, *mean.shape), generator=generator)
        times = (torch.arange(times_each) + (place + 0.5) / count) / times_each
        timesteps = (times * len(alphas_cumprod)).long()
        embedding = text.table[text.rows([example.caption] * times_each)]
        parts.append((mean + std * sampled, noise, timesteps, alphas_cumprod[timesteps], embedding))
    return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def validation_loss(
    sd: StableDiffusion, batch: Batch, at_once: int, ranks: Ranks = ALONE
) -> Generator[Event, None, float]:
    """Return the mean squared error over ``batch``, unweighted, in forward passes of ``at_once`` pictures.

    Each of ``ranks`` takes its share; all return the same.
    """
    total = torch.zeros((), device=sd.device)
    done, own = 0, batch if ranks.alone else batch.part(*ranks.share(len(batch)))
    yield Progress("validation", 0, len(own), "passes")
    with evaluating(sd):
        for part in own.split(at_once) if len(own) else ():
            with torch.no_grad():
                total += errors(sd, part.to(sd.device)).sum()
            done += len(part)
            yield Progress("validation", done, len(own), "passes")
    return ranks.add(float(total)) / len(batch)


@contextmanager
def evaluating(sd: StableDiffusion) -> Iterator[None]:
    """Turn dropout off for the block, and back on after it."""
    parts = [part for part in (sd.unet, sd.text_encoder) if part.training]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for part in parts:
            part.train()
