"""What several tests of the training need."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from lorasmith.dataset.read import Example
from lorasmith.events import Event
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.train.encode import LatentSet, TextSet

CAPTIONS = ("an axe", "a pink whip", "a blossom")


class Counting:
    """Counts the forward passes of a model's VAE and text encoder."""

    def __init__(self, sd: StableDiffusion) -> None:
        self.vae = self.text = 0
        sd.vae.encoder.register_forward_hook(lambda *_: self._count("vae"))
        sd.text_encoder.register_forward_hook(lambda *_: self._count("text"))

    def _count(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)


def drain(generator: Generator[Event, None, Any]) -> tuple[list[Event], Any]:
    """Return the events of a generator and the value it returns."""
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as stop:
            return events, stop.value


def latent_set(count: int = 8, views: int = 2) -> LatentSet:
    """Return latents that tell their picture and view: mean = picture + view / 10, std 0.01."""
    mean = torch.arange(count).view(-1, 1, 1, 1, 1) + torch.arange(views).view(1, -1, 1, 1, 1) / 10
    examples = [Example(Path(f"{i}.png"), CAPTIONS[i % 3], f"class {i % 2}", 32, 32, f"{i:064}") for i in range(count)]
    return LatentSet(tuple(examples), mean.expand(count, views, 6, 8, 8), torch.full((count, views, 6, 8, 8), 0.01))


def text_set(sd: StableDiffusion) -> TextSet:
    with torch.no_grad():
        return TextSet(sd.encode_text(["", *CAPTIONS]), {text: row for row, text in enumerate(("", *CAPTIONS))})
