"""Where the encoded pictures and captions lie while the UNet trains, and how a step's batch gets to the device.

On a GPU the whole set lies in its memory where it fits into a tenth of what is free once the base is loaded: 24 GB
hold the latents of some 9,000 pictures at 512 px in that. Else it lies in main memory, and a step's share is copied.
What a step draws is drawn on the CPU all the same. A thread prepares it while the step before is computed, in pinned
memory, from which a GPU copies without anyone waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from lorasmith.train.encode import LatentSet, TextSet
from lorasmith.train.step import Batch, Draws

_SHARE_OF_FREE_MEMORY = 0.1


@dataclass(frozen=True)
class Tables:
    """The encoded pictures and captions, both in main memory or both on the device that trains."""

    latents: LatentSet
    text: TextSet

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.latents.mean.device

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(t.numel() * t.element_size() for t in (self.latents.mean, self.latents.std, self.text.table))

    def to(self, device: torch.device) -> Tables:
        """Return them on ``device``."""
        latents = replace(self.latents, mean=self.latents.mean.to(device), std=self.latents.std.to(device))
        return Tables(latents, replace(self.text, table=self.text.table.to(device)))


def place(tables: Tables, device: torch.device) -> Tables:
    """Return ``tables`` where a training on ``device`` reads them fastest."""
    if device.type == "cuda" and tables.size <= _SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]:
        return tables.to(device)
    return tables


class Supply:
    """Makes the batch of each step, on a GPU one step ahead.

    Args:
        tables: as ``place`` returns them.
        device: where the batches go.
        draw: what the step of a number draws, on the CPU; it is called once for each, in their order.
    """

    def __init__(self, tables: Tables, device: torch.device, draw: Callable[[int], Draws]) -> None:
        self.tables, self.device, self._draw = tables, device, draw
        self._thread = ThreadPoolExecutor(1, "supply") if device.type == "cuda" else None
        self._ahead: tuple[int, Future[Draws | Batch]] | None = None

    def take(self, step: int) -> Batch:
        """Return the batch of ``step``, without waiting for the device."""
        if self._thread is None:
            return self._on_device(self._prepare(step))
        ready = self._ahead[1] if self._ahead and self._ahead[0] == step else self._thread.submit(self._prepare, step)
        batch = self._on_device(ready.result())
        self._ahead = step + 1, self._thread.submit(self._prepare, step + 1)
        return batch

    def _prepare(self, step: int) -> Draws | Batch:
        """Draw; look up what lies in main memory, and pin what is to be copied."""
        draws = self._draw(step)
        here = self.tables.device.type == "cpu"
        prepared = draws.look_up(self.tables.latents, self.tables.text) if here else draws
        return prepared.pinned() if self.device.type == "cuda" else prepared

    def _on_device(self, prepared: Draws | Batch) -> Batch:
        there = prepared.to(self.device)
        return there.look_up(self.tables.latents, self.tables.text) if isinstance(there, Draws) else there
