"""Makes the starter's VAE: an encoder that is written down, not trained, and a decoder that learns to undo it.

The encoder is a block cosine transform, as in JPEG: each 4x4 block of pixels becomes its ten lowest luma and two times
three chroma coefficients. Nothing has to be learned for that, so the latents are the same in every build, and the
UNet can be trained before, after or beside the decoder. On renders with blossoms the sixteen coefficients alone hold
30.6 dB; the trained encoder of factor 8 with as many channels that ships, with its decoder, reaches 26.7.

A build that starts from finished models trains their decoder on, and their encoder with it if it was trained before.
That one is held to what it said when the build began, each channel as firmly as it spoke loudly, so that the UNet need
not learn anew, while channels that said next to nothing are free to say more. The UNet has to be trained afterwards.

The transform is written into the weights of a stock ``AutoencoderKL`` (see ``write_transform``), so that any program
that loads Stable Diffusion's VAE loads this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lorasmith.starter.build.job import Job, Site, autocast
from lorasmith.starter.build.pool import VAE_SEEDS, renders, textures

LATENT_CHANNELS = 16
FACTOR = 4
CROP = 64
SIGMA = 0.05  # standard deviation of the unscaled latents about their mean: the decoder learns to bear it

# (vertical, horizontal) frequencies of the coefficients that are kept, coarse to fine.
FREQUENCIES = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0))
CHROMA_KEPT = 3
# Each coefficient's standard deviation on renders with blossoms, pictures in -1 to 1, and the one its latent gets. Fine
# coefficients get less than their share of 1: they matter less to the eye, and white latents are hard for a UNet.
FOUND = (2.69, 0.534, 0.532, 0.229, 0.254, 0.263, 0.139, 0.13, 0.159, 0.172, 1.734, 0.297, 0.289, 1.001, 0.195, 0.192)
GIVEN = (1.0, 0.6, 0.6, 0.45, 0.45, 0.45, 0.35, 0.35, 0.35, 0.35, 1.0, 0.5, 0.5, 1.0, 0.5, 0.5)
SCALING = 1 / math.sqrt(sum(g * g for g in GIVEN) / len(GIVEN))  # brings the latents' variance to 1
HOLD = 0.3  # weight of the squared distance between an encoder's latents and those it began with
STEADY = 32.0  # the constant beside which group normalisation hardly notices a coefficient


def make_vae(start: Path | None = None) -> AutoencoderKL:
    """Return the VAE in ``start``, or one of factor 4 with 16 latent channels and an untrained decoder."""
    if start:
        return AutoencoderKL.from_pretrained(start / "starter" / "vae", torch_dtype=torch.float32)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=128, layers_per_block=1,
        block_out_channels=(16, 32, 64), norm_num_groups=8, scaling_factor=SCALING,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    write_transform(vae)
    return vae


def transform() -> Tensor:
    """Return the encoder as one convolution of stride 4: (16, 3, 4, 4), applied to RGB in -1 to 1.

    Rows are products of orthonormal cosines (the DCT-II of Ahmed, Natarajan and Rao, 1974) with an orthonormal colour
    axis (grey, red against blue, green against both), each scaled from its spread on renders to the one wanted.
    """
    n = torch.arange(4)
    cosines = torch.cos(math.pi * (n[None] + 0.5) * n[:, None] / 4) * math.sqrt(0.5)
    cosines[0] *= math.sqrt(0.5)
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])
    grey, *chroma = axes / axes.norm(dim=1, keepdim=True)
    kept = [(grey, f) for f in FREQUENCIES] + [(axis, f) for axis in chroma for f in FREQUENCIES[:CHROMA_KEPT]]
    rows = [axis[:, None, None] * torch.outer(cosines[i], cosines[j]) for axis, (i, j) in kept]
    return torch.stack(rows) * (torch.tensor(GIVEN) / torch.tensor(FOUND)).view(-1, 1, 1, 1)


@torch.no_grad()
def latent_means(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Return what the encoder makes of pictures (N, 3, H, W) in -1 to 1: unscaled latents, (N, C, h, w)."""
    if len(vae.config.block_out_channels) == 3:  # the transform, which need not be run as an encoder
        return F.conv2d(x, transform().to(x), stride=FACTOR)
    return vae.encode(x).latent_dist.mean  # type: ignore[no-any-return]


def sigma_of(vae: AutoencoderKL) -> float:
    """Return the standard deviation of noise on unscaled latents that a decoder learns to bear."""
    return SIGMA * SCALING / float(vae.config.scaling_factor)


@torch.no_grad()
def write_transform(vae: AutoencoderKL) -> None:
    """Write ``transform`` into the encoder of a VAE with widths (16, 32, 64), one layer per block and 8 groups.

    Every residual branch is silenced, so that pictures run along the skips. The two downsampling convolutions each pick
    the four phases of 2x2 pixels; the second sums them into the coefficients. What stays in the way is the last
    normalisation and SiLU. Each of the 8 groups carries the constants +K and -K and two coefficients, each as +v and
    -v: the mean is 0 and the deviation sqrt(2 / 6) K to within (v / K)^2, and silu(v) - silu(-v) = v takes the SiLU
    back.
    """
    encoder = vae.encoder
    first, second = (block.downsamplers[0].conv for block in encoder.down_blocks[:2])
    for block in (*(r for b in encoder.down_blocks for r in b.resnets), *encoder.mid_block.resnets):
        _clear(block.conv2, block.conv_shortcut)
    _clear(encoder.mid_block.attentions[0].to_out[0], encoder.conv_in, first, second, encoder.conv_out, vae.quant_conv)
    rows, groups = transform(), encoder.conv_norm_out.num_groups
    for colour in range(3):
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
        for y, x in np.ndindex(2, 2):
            phase = 4 * colour + 2 * y + x
            first.weight[phase, colour, y, x] = 1
            second.weight[:LATENT_CHANNELS, phase, :2, :2] = rows[:, colour, y::2, x::2]
    wider, widest = (block.resnets[0].conv_shortcut for block in encoder.down_blocks[1:])
    for phase in range(12):
        wider.weight[phase, phase, 0, 0] = 1
    size = len(widest.weight) // groups
    back = STEADY * math.sqrt(2 / size)
    for group in range(groups):
        at = group * size
        widest.bias[at], widest.bias[at + 1] = STEADY, -STEADY
        for k, channel in ((2 * group, at + 2), (2 * group + 1, at + 4)):
            widest.weight[channel, k, 0, 0], widest.weight[channel + 1, k, 0, 0] = 1, -1
            encoder.conv_out.weight[k, channel, 1, 1], encoder.conv_out.weight[k, channel + 1, 1, 1] = back, -back
    for i in range(LATENT_CHANNELS):
        vae.quant_conv.weight[i, i, 0, 0] = 1
    _spread(vae, SIGMA)


@torch.no_grad()
def _spread(vae: AutoencoderKL, sigma: float) -> None:
    """Let the encoder say ``sigma`` everywhere: what the decoder learns to bear, and nothing the loss asks about."""
    channels = int(vae.config.latent_channels)
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = 2 * math.log(sigma)


def _clear(*layers: nn.Module | None) -> None:
    for layer in layers:
        if layer is not None:
            for parameter in layer.parameters():
                parameter.zero_()


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


def strayed(latents: Tensor, before: Tensor) -> Tensor:
    """Return how far an encoder has strayed from what it said before; a number for a loss.

    Args:
        latents: what it says now, scaled to variance 1, (N, C, h, w).
        before: what it said at the start.

    The squared distance counts by channel, in proportion to the channel's power at the start. A channel whose power
    exceeds 1 is called back.
    """
    power = before.square().mean((0, 2, 3))
    moved = (latents - before).square().mean((0, 2, 3))
    beyond = (latents.square().mean((0, 2, 3)) - torch.clamp(power, min=1)).clamp(min=0)
    return (moved * power / power.max() + beyond).mean()


def train_vae(site: Site, minutes: float | None, deadline: float) -> Job:
    """Train the decoder for its budget, or go on with it: crops at first, whole pictures in the last tenth."""
    vae = make_vae(site.start).to(site.device, memory_format=torch.channels_last)
    written = len(vae.config.block_out_channels) == 3  # the transform, which has nothing to learn
    sigma, scaling = sigma_of(vae), float(vae.config.scaling_factor)
    vae.encoder.requires_grad_(not written)
    vae.quant_conv.requires_grad_(False)
    _spread(vae, sigma)
    job = Job("vae", vae, site.work, minutes, deadline, learning_rate=1e-3, ema_decay=0.998)
    if job.idle:
        return job
    batch = _batches(site)
    first = make_vae(site.start).to(site.device, memory_format=torch.channels_last)

    def loss(fraction: float, step: int) -> tuple[Tensor, int]:
        x = batch(fraction > 0.9, step)
        torch.manual_seed(step)
        with autocast(site.device):
            before = latent_means(first, x)
            mean = before if written else vae.encode(x).latent_dist.mean
            latents = (mean + sigma * torch.randn_like(mean)).contiguous(memory_format=torch.channels_last)
            out = vae.decoder(vae.post_quant_conv(latents))
        return picture_loss(out.float(), x) + HOLD * strayed(mean.float() * scaling, before.float() * scaling), len(x)

    job.run(loss, site.say)
    return job
