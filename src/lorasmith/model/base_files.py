"""A base as it lies on the disk: what its parts are and where their weights are. Nothing is loaded yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorasmith.model.part_weights import PartWeights
from lorasmith.recipe.schema import WeightChoice as WeightChoice

Layout = Literal["diffusers folder", "single file"]
PARTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class BaseFiles:
    """What ``find_base`` found.

    Attributes:
        path: the folder or the file.
        configs: the arguments of each part's module, as its config.json would have them.
        weights: of each part.
        scheduler: the noise schedule's settings.
        tokenizer: the folder of the tokenizer; None where it has to be made, from CLIP's list of merges.
        notes: what the user should know about the choices made, one line each.
    """

    path: Path
    layout: Layout
    configs: Mapping[str, dict[str, Any]]
    weights: Mapping[str, PartWeights]
    scheduler: dict[str, Any]
    tokenizer: Path | None
    notes: tuple[str, ...] = ()
