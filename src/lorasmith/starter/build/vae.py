"""Trains the starter's VAE: renders (blossoms on half of them), dead leaves and textures in; the same out.

Luma and chroma are weighed apart, because an L1 on RGB learns shapes long before colours. Early on the latent means
are pulled toward a fixed linear code of the picture (2x2 area averages of each 8x8 block in RGB, and four finer
luma differences), so that the decoder has something to decode from the first step and the latents stay
picture-like, which the UNet finds easy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from lorasmith.starter.build.job import Job, Site
from lorasmith.starter.build.pool import VAE_SEEDS, renders, textures

LATENT_CHANNELS = 16
FACTOR = 8
KL_WEIGHT = 3e-4
CROP = 64
PULL_LAST = 0.05  # what remains of the pull toward the linear code


def make_vae(start: Path | None = None) -> AutoencoderKL:
    """Return a VAE of factor 8 with 16 latent channels, 2.8 M parameters; untrained, or that of finished models."""
    if start:
        return AutoencoderKL.from_pretrained(start / "starter" / "vae", torch_dtype=torch.float32)
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=128, layers_per_block=1,
        block_out_channels=(16, 32, 64, 128), norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def linear_code(x: Tensor) -> Tensor:
    """Return the code the latents are pulled toward: (N, 3, H, W) in -1 to 1 -> (N, 16, H/8, W/8)."""
    coarse = F.pixel_unshuffle(F.avg_pool2d(x, 4), 2)
    luma = F.avg_pool2d(x.mean(1, keepdim=True), 2)  # 4x4 cells in each block
    blocks = F.pixel_unshuffle(luma, 4)
    cells = blocks.view(len(x), 4, 4, *blocks.shape[2:])
    sign, half = x.new_tensor([1.0, -1.0, 1.0, -1.0]), x.new_tensor([1.0, 1.0, -1.0, -1.0])
    rows, columns = sign.view(4, 1, 1, 1), sign.view(1, 4, 1, 1)
    top, left = half.view(4, 1, 1, 1), half.view(1, 4, 1, 1)
    fine = torch.stack([(cells * w).mean((1, 2)) for w in (rows, columns, rows * left, columns * top)], dim=1)
    return torch.cat([coarse, fine * 2], dim=1)


def picture_loss(out: Tensor, x: Tensor) -> Tensor:
    """Return L1 on luma, three times L1 on chroma, half of L1 on gradients, and a little squared error."""
    d = out - x
    luma = 0.299 * d[:, 0] + 0.587 * d[:, 1] + 0.114 * d[:, 2]
    chroma = (d[:, 0] - luma).abs().mean() + (d[:, 2] - luma).abs().mean()
    edges = d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
    return luma.abs().mean() + 1.5 * chroma + 0.5 * edges + d.square().mean()


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


def train_vae(site: Site, minutes: float | None, deadline: float) -> Job:
    """Train the VAE for its budget, or go on with it. The first 3/4 see crops, the rest whole pictures."""
    vae = make_vae(site.start).to(site.device, memory_format=torch.channels_last)
    job = Job("vae", vae, site.work, minutes, deadline, learning_rate=1e-3, ema_decay=0.998)
    if job.idle:
        return job
    batch = _batches(site)

    def loss(fraction: float, step: int) -> tuple[Tensor, int]:
        x = batch(fraction > 0.75, step)
        with torch.autocast(site.device.type, torch.bfloat16):
            mean, logvar = _moments(vae, x)
            latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            out = vae.decoder(vae.post_quant_conv(latents))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        strength = PULL_LAST if site.start else max(PULL_LAST, 1 - fraction / 0.4)
        pull = strength * F.smooth_l1_loss(mean, linear_code(x), beta=0.2)
        return picture_loss(out.float(), x) + KL_WEIGHT * kl + pull, len(x)

    job.run(loss, site.say)
    return job


def train_decoder(site: Site, start: AutoencoderKL, minutes: float | None, deadline: float) -> Job:
    """Go on with the decoder alone. The encoder stays as it is, so a UNet trained on its latents stays valid."""
    vae = start.to(site.device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    job = Job("decoder", vae, site.work, minutes, deadline, learning_rate=6e-4, ema_decay=0.998)
    if job.idle:
        return job
    batch = _batches(site)

    def loss(fraction: float, step: int) -> tuple[Tensor, int]:
        x = batch(fraction > 0.5, step)
        with torch.autocast(site.device.type, torch.bfloat16):
            with torch.no_grad():
                mean, logvar = _moments(vae, x)
                latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            out = vae.decoder(vae.post_quant_conv(latents))
        return picture_loss(out.float(), x), len(x)

    job.run(loss, site.say)
    return job


def _moments(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and log variance of the latents of pictures, unscaled, float32."""
    mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, dim=1)
    return mean, logvar.clamp(-20, 10)
