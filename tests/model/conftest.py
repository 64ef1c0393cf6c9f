from __future__ import annotations

from pathlib import Path

import pytest

from lorasmith.model.stable_diffusion import StableDiffusion, load_base


@pytest.fixture
def sd(tiny_base: Path) -> StableDiffusion:
    return load_base(str(tiny_base))
