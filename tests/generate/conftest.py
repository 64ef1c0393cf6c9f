from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorasmith.model.formats import write_diffusers
from lorasmith.model.lora import LoraConfig, attach, detach, lora_state
from lorasmith.model.stable_diffusion import StableDiffusion, load_base


@pytest.fixture(scope="module")
def sd(tiny_base: Path) -> StableDiffusion:
    return load_base(str(tiny_base))


@pytest.fixture
def lora_path(sd: StableDiffusion, tmp_path: Path) -> Path:
    """Return a LoRA that changes the picture, in a folder like a checkpoint's."""
    generator = torch.Generator().manual_seed(1)
    for parameter in attach(sd, LoraConfig(rank=4, alpha=6.0, targets="all")):
        parameter.data.normal_(std=0.15, generator=generator)
    path = tmp_path / "step-000400" / "lora.safetensors"
    path.parent.mkdir()
    write_diffusers(lora_state(sd), path)
    detach(sd)
    return path
