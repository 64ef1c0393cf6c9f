"""Trains the starter's VAE: renders (blossoms on half of them), dead leaves and textures in; the same out.

An encoder is held to a reference. One that begins from nothing learns beside a linear code of the picture, so that the
decoder has something to decode from the first step and the latents stay picture-like, which a UNet finds easy. One that
goes on from finished models is held to what it said when the build began, so that their UNet, which has to be trained
afterwards, need not learn all anew. Either way each channel is held as firmly as its reference speaks loudly: channels
that say next to nothing are free to say more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from lorasmith.starter.build.job import Job, Site, autocast
from lorasmith.starter.build.pool import VAE_SEEDS, renders, textures

LATENT_CHANNELS = 16
FACTOR = 8
CROP = 64
SCALING = 2.26  # brings the variance of the linear code of renders to 1
SIGMA = 0.083  # standard deviation of the scaled latents about their mean: the decoder learns to bear it
HOLD = 0.3  # weight of the squared distance between an encoder's latents and its reference
FIRST_HOLD = 3.0  # and at first, where the encoder has to learn its reference


def make_vae(start: Path | None = None) -> AutoencoderKL:
    """Return the VAE in ``start``, or an untrained one of factor 8 with 16 latent channels, 2.8 M parameters."""
    if start:
        return AutoencoderKL.from_pretrained(start / "starter" / "vae", torch_dtype=torch.float32)
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=128, layers_per_block=1,
        block_out_channels=(16, 32, 64, 128), norm_num_groups=8, scaling_factor=SCALING,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def linear_code(x: Tensor) -> Tensor:
    """Return the code that an encoder begins beside: pictures (N, 3, H, W) in -1 to 1 -> (N, 16, H/8, W/8).

    Of each block of 8x8 pixels the colours of its quarters, and four finer differences in brightness.
    """
    coarse = F.pixel_unshuffle(F.avg_pool2d(x, 4), 2)
    luma = F.avg_pool2d(x.mean(1, keepdim=True), 2)  # 4x4 cells in each block
    blocks = F.pixel_unshuffle(luma, 4)
    cells = blocks.view(len(x), 4, 4, *blocks.shape[2:])
    sign, half = x.new_tensor([1.0, -1.0, 1.0, -1.0]), x.new_tensor([1.0, 1.0, -1.0, -1.0])
    rows, columns = sign.view(4, 1, 1, 1), sign.view(1, 4, 1, 1)
    top, left = half.view(4, 1, 1, 1), half.view(1, 4, 1, 1)
    fine = torch.stack([(cells * w).mean((1, 2)) for w in (rows, columns, rows * left, columns * top)], dim=1)
    return torch.cat([coarse, fine], dim=1)


def sigma_of(vae: AutoencoderKL) -> float:
    """Return the standard deviation of noise on unscaled latents that a decoder learns to bear."""
    return SIGMA / float(vae.config.scaling_factor)


@torch.no_grad()
def _spread(vae: AutoencoderKL) -> None:
    """Let the encoder say ``SIGMA`` everywhere: what the decoder learns to bear, and nothing the loss asks about."""
    channels = int(vae.config.latent_channels)
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = 2 * math.log(sigma_of(vae))


def picture_loss(out: Tensor, x: Tensor) -> Tensor:
    """Return L1 on luma, three times L1 on chroma, half of L1 on gradients, and about as much of squared error."""
    d = out - x
    luma = 0.299 * d[:, 0] + 0.587 * d[:, 1] + 0.114 * d[:, 2]
    chroma = (d[:, 0] - luma).abs().mean() + (d[:, 2] - luma).abs().mean()
    edges = d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
    return luma.abs().mean() + 1.5 * chroma + 0.5 * edges + 8 * d.square().mean()


def _batches(site: Site) -> Callable[[bool, int], Tensor]:
    """Return a function that draws a batch of whole pictures or crops, (N, 3, H, W) in -1 to 1, for a step."""
    drawn, _ = renders(site.work, "vae", VAE_SEEDS, 9000, blossom=0.55, workers=site.workers)
    grain = textures(site.work, VAE_SEEDS, 3000, workers=site.workers)
    crops, wholes = (96, 32) if site.device.type == "cuda" else (24, 8)

    def batch(whole: bool, step: int) -> Tensor:
        rng = np.random.default_rng([7, step])
        n = wholes if whole else crops
        pictures = []
        for source in rng.random(n) < 0.2:
            picture = grain[rng.integers(len(grain))] if source else drawn[rng.integers(len(drawn))]
            if not whole:
                y, x = rng.integers(0, 128 - CROP + 1, 2)
                if not source:  # near the item, which lies about the middle
                    y, x = np.clip(rng.normal(32, 16, 2), 0, 64).astype(int)
                picture = picture[y : y + CROP, x : x + CROP]
            pictures.append(picture[:, ::-1] if rng.random() < 0.5 else picture)
        x = torch.from_numpy(np.stack(pictures)).to(site.device).permute(0, 3, 1, 2)
        return x.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)

    return batch


def strayed(latents: Tensor, reference: Tensor) -> Tensor:
    """Return how far an encoder has strayed from a reference; a number for a loss.

    Args:
        latents: what it says, scaled to variance 1, (N, C, h, w).
        reference: what it is held to, scaled alike.

    The squared distance counts by channel, in proportion to the power of the reference there. A channel whose power
    exceeds 1 is called back.
    """
    power = reference.square().mean((0, 2, 3))
    moved = (latents - reference).square().mean((0, 2, 3))
    beyond = (latents.square().mean((0, 2, 3)) - torch.clamp(power, min=1)).clamp(min=0)
    return (moved * power / power.max() + beyond).mean()


def _reference(site: Site) -> Callable[[Tensor], Tensor]:
    """Return what gives an encoder's reference for pictures: unscaled latents."""
    if not site.start:
        return linear_code
    first = make_vae(site.start).to(site.device, memory_format=torch.channels_last)

    @torch.no_grad()
    def before(x: Tensor) -> Tensor:
        return first.encode(x).latent_dist.mean  # type: ignore[no-any-return]

    return before


def train_vae(site: Site, minutes: float | None, deadline: float) -> Job:
    """Train the VAE for its budget, or go on with it: crops at first, whole pictures in the last tenth."""
    vae = make_vae(site.start).to(site.device, memory_format=torch.channels_last)
    vae.quant_conv.requires_grad_(False)
    _spread(vae)
    job = Job("vae", vae, site.work, minutes, deadline, learning_rate=1e-3, ema_decay=0.998)
    if job.idle:
        return job
    batch, reference = _batches(site), _reference(site)
    sigma, scaling = sigma_of(vae), float(vae.config.scaling_factor)

    def loss(fraction: float, step: int) -> tuple[Tensor, int]:
        x = batch(fraction > 0.9, step)
        torch.manual_seed(step)
        with autocast(site.device):
            mean, held = vae.encode(x).latent_dist.mean, reference(x)
            latents = (mean + sigma * torch.randn_like(mean)).contiguous(memory_format=torch.channels_last)
            out = vae.decoder(vae.post_quant_conv(latents))
        strength = HOLD if site.start else max(HOLD, FIRST_HOLD * (1 - fraction / 0.3))
        away = strayed(mean.float() * scaling, held.float() * scaling)
        return picture_loss(out.float(), x) + strength * away, len(x)

    job.run(loss, site.say)
    return job
