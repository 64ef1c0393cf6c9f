"""The count of operations, against what is known of SD v1.5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorasmith.bench.job import Job
from lorasmith.bench.measure import flops
from lorasmith.model.stable_diffusion import StableDiffusion, load_base


@pytest.fixture(scope="module")
def full_size(tiny_base: Path) -> StableDiffusion:
    """SD v1.5's UNet without data, beside a VAE and a text encoder of its sizes outside and nothing inside."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    sd = load_base(str(tiny_base))
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(**blocks, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4)
        text = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1, hidden_size=768, vocab_size=1000))
    for part in (unet, vae, text):
        part.requires_grad_(False)
    sd.tokenizer.model_max_length = 77
    return replace(sd, unet=unet, vae=vae, text_encoder=text)


def test_a_training_sample_of_sd15_at_512_px(full_size: StableDiffusion) -> None:
    assert sum(p.numel() for p in full_size.unet.parameters()) == 859_520_964
    assert flops(full_size, Job("train", rank=4), 512) == pytest.approx(1.733e12, rel=0.03)  # attention counts more


def test_a_picture_costs_two_forward_passes_a_step_and_the_decoder(full_size: StableDiffusion) -> None:
    one, three = (flops(full_size, Job("generate", steps=steps), 512) for steps in (1, 3))
    assert (three - one) / 4 == pytest.approx(0.803e12, rel=0.03)  # a pass is commonly given as 803 GFLOP
    assert one > (three - one) / 2
