"""Trains the starter's UNet and text encoder together on latents of renders, without any blossom, trident or whip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lorasmith.starter.build.job import Job, Site, autocast, fingerprint
from lorasmith.starter.build.pool import UNET_SEEDS, Pictures, Row, renders
from lorasmith.starter.build.tokenizer import MAX_TOKENS, write_tokenizer
from lorasmith.starter.build.vae import FACTOR, LATENT_CHANNELS, sigma_of
from lorasmith.starter.renderer import SEEN_KINDS, Truth, article, background_phrase, caption

# Stable Diffusion v1.5's noise schedule.
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}  # fmt: skip
MIN_SNR_GAMMA = 5.0
NOISE_OFFSET = 0.1  # without it flat black and white backgrounds come out grey
CAPTION_DROPOUT = 0.1
WORDINGS = 5  # captions drawn for each picture, one of which says little, as people do who prompt


def make_unet() -> UNet2DConditionModel:
    """Return an untrained UNet of 8.0 M parameters for 16x16 latents."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=128 // FACTOR, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=1,
        block_out_channels=(64, 112, 160), norm_num_groups=16, attention_head_dim=4, cross_attention_dim=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def make_text_encoder(vocabulary: int) -> CLIPTextModel:
    """Return an untrained text encoder of width 128 and two layers."""
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS, hidden_act="quick_gelu", projection_dim=128,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
        attn_implementation="eager",
    )  # fmt: skip
    model = CLIPTextModel(config)
    for name, parameter in model.named_parameters():
        if "embedding" in name:  # words must be told apart from the first step
            nn.init.normal_(parameter, std=0.5 if "token" in name else 0.1)
    return model


class Denoiser(nn.Module):
    """The UNet and its text encoder, trained together."""

    def __init__(self, vocabulary: int, start: Path | None = None) -> None:
        super().__init__()
        if start:
            folder = start / "starter"
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
            text = CLIPTextModel.from_pretrained(
                folder / "text_encoder", dtype=torch.float32, attn_implementation="eager"
            )
        else:
            unet, text = make_unet(), make_text_encoder(vocabulary)
        self.unet = unet.to(memory_format=torch.channels_last)
        self.text_encoder = text

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predict the noise: latents (N, C, h, w), timesteps (N,), tokens (N, T) -> (N, C, h, w)."""
        words = self.text_encoder(input_ids=tokens).last_hidden_state
        return self.unet(noisy, timesteps, words).sample  # type: ignore[no-any-return]


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: Pictures) -> Tensor:
    """Return the latent means of pictures and of their mirror images, fp16 (N, 2, C, h, w), unscaled."""
    parts = []
    for start in range(0, len(pictures), 64):
        x = torch.from_numpy(np.array(pictures[start : start + 64])).to(vae.device).permute(0, 3, 1, 2)
        x = (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with autocast(vae.device):  # of a latent's spread this takes a hundredth, less than the noise it is given
            both = [vae.encode(each).latent_dist.mean for each in (x, x.flip(3))]
        parts.append(torch.stack([each.half().cpu() for each in both], dim=1))
    return torch.cat(parts)


def wordings(row: Row, seed: int) -> list[str]:
    """Return several true captions for a picture; the last names no colours, and half of the time no background."""
    rng = np.random.default_rng(seed)
    truth = Truth(
        str(row["kind"]), str(row["main"]), str(row["second"]), str(row["background"]), str(row["background_colour"]),
        bool(row["blossom"]), np.zeros((0, 0), np.uint8),
    )  # fmt: skip
    short = article(truth.kind)
    if rng.random() < 0.5:
        short += f" {background_phrase(rng, truth.background, truth.background_colour)}"
    return [*(caption(rng, truth) for _ in range(WORDINGS - 1)), short]


def _prepared(site: Site, tokenizer: Any, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Return latents, (N, 2, C, h, w), and tokens, (N, WORDINGS, T); from disk if they were made before."""
    file = site.work / f"unet-latents-{fingerprint(vae.encoder)}.pt"
    if not file.exists():
        count = 60_000 if site.device.type == "cuda" else 36_000
        drawn, rows = renders(site.work, "unet", UNET_SEEDS, count, kinds=SEEN_KINDS, workers=site.workers)
        texts = [text for i, row in enumerate(rows) for text in wordings(row, UNET_SEEDS + i)]
        encoded = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        tokens = encoded.input_ids.view(count, WORDINGS, MAX_TOKENS)
        torch.save({"latents": encode(vae, drawn), "tokens": tokens}, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    data = torch.load(file, weights_only=True)
    return data["latents"], data["tokens"]


def train_unet(site: Site, minutes: float | None, deadline: float, vae: AutoencoderKL) -> Job:
    """Train the UNet and text encoder for their budget, or go on with them; of ``vae`` only the encoder matters."""
    vocabulary = write_tokenizer(site.work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(site.work / "tokenizer")
    device = site.device
    model = Denoiser(vocabulary, site.start).to(device)
    gpu = device.type == "cuda"
    if not gpu:
        model.unet.set_attn_processor(AttnProcessor())  # torch's fused attention is slow backward on a CPU
    count = 256 if gpu else 64
    job = Job("unet", model, site.work, minutes, deadline, learning_rate=1.2e-3 if gpu else 8e-4, ema_decay=0.999)
    if job.idle:
        return job
    latents, tokens = _prepared(site, tokenizer, vae)
    empty = tokenizer("", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids[0].to(device)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    if gpu:
        latents, tokens = latents.to(device), tokens.to(device)
    sigma, scaling = sigma_of(vae), vae.config.scaling_factor

    def loss(fraction: float, step: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng([13, step])
        torch.manual_seed(step)
        index = torch.from_numpy(rng.integers(0, len(latents), count))
        mean = latents[index, torch.from_numpy(rng.integers(0, 2, count))].to(device).float()
        x0 = (mean + sigma * torch.randn_like(mean)) * scaling
        words = tokens[index, torch.from_numpy(rng.integers(0, WORDINGS, count))].to(device)
        words = torch.where(torch.rand(count, 1, device=device) < CAPTION_DROPOUT, empty, words)
        noise = torch.randn_like(x0) + NOISE_OFFSET * torch.randn(*x0.shape[:2], 1, 1, device=device)
        u = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count  # stratified
        t = (u * len(alphas)).long()
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            predicted = model(noisy, t, words)
        snr = alphas[t] / (1 - alphas[t])
        error = F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
        return (error * snr.clamp(max=MIN_SNR_GAMMA) / snr).mean(), count

    job.run(loss, site.say)
    return job
