"""A miniature base, a few small pictures, and recipes over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorasmith.model.stable_diffusion import StableDiffusion, load_base
from lorasmith.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own."""
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sd(tiny_base: Path) -> StableDiffusion:
    return load_base(str(tiny_base))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two classes of 6 and 3 pictures, of the base's own size, so that no resampling comes between."""
    made = []
    for label, count in (("axe", 6), ("whip", 3)):
        folder = tmp_path / label
        folder.mkdir()
        lines = []
        for i in range(count):
            y, x = np.mgrid[0:32, 0:32]
            shade = np.stack([x * 8, y * (i + 1), (x + y * i) * len(label)], axis=-1) % 256
            Image.fromarray(shade.astype(np.uint8)).save(folder / f"{i}.png")
            lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a pink {label} {i % 3}"}))
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
        made.append(folder)
    return made


@pytest.fixture
def make_recipe(tiny_base: Path, folders: list[Path]) -> Callable[..., Recipe]:
    """Return a function that makes a short fp32 recipe; sections given by name replace single fields."""

    def make(**sections: dict[str, Any]) -> Recipe:
        fields: dict[str, Any] = {
            "base": str(tiny_base),
            "data": {"folders": tuple(folders), "validation": 0.25},
            "lora": {"rank": 4, "alpha": 2.0},
            "train": {"steps": 6, "batch": 2, "warmup": 2, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu"},
            "samples": {"steps": 2, "prompts": ("an axe",)},
        }
        return Recipe.model_validate({**fields, **{k: {**fields[k], **v} for k, v in sections.items()}})

    return make
