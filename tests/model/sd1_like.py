"""Stable Diffusion 1.x in miniature: its true layout, names and tokenizer, with few channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MERGES = 600
UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64, "attention_head_dim": 8, "norm_num_groups": 32,
}  # fmt: skip
VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 16,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "vocab_size": MERGES + 514, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 1, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 64,
    "bos_token_id": MERGES + 512, "eos_token_id": MERGES + 513, "pad_token_id": MERGES + 513,
}  # fmt: skip


def write_folder(folder: Path, **unet: Any) -> Path:
    """Write such a base as a diffusers folder, with diffusers' and transformers' own code, and return it.

    Args:
        unet: settings of the UNet that differ.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from lorasmith.model.clip_tokenizer import write_tokenizer

    write_tokenizer(folder / "tokenizer", MERGES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        pipeline = StableDiffusionPipeline(
            unet=UNet2DConditionModel(**UNET, **unet),
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, initializer_factor=5.0)),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            scheduler=PNDMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                set_alpha_to_one=False, steps_offset=1,
            ),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def ema_of(state: dict[str, Tensor], shift: float = 0.01) -> dict[str, Tensor]:
    """Return a moving average of the UNet as the makers' LitEma keeps it: names without dots, and two buffers."""
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + shift
        for name, tensor in state.items()
        if name.startswith("model.diffusion_model.")
    }
    return averaged | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
