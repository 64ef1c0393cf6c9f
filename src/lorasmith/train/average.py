"""A moving average of the adapter's weights (EMA): steadier than the weights themselves, and often better.

Averages of the iterates: Polyak and Juditsky 1992; with exponentially falling weights, as diffusion models are
trained: Ho et al. 2020, appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of ``parameters``, in float32 on their device.

    Args:
        decay: share of the average that stays in a step. In the first steps less does, min(decay, (1 + n) / (10 + n))
            in step n, so that what the training began with is soon forgotten.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self.decay = parameters, decay
        self.tensors = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``; nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, list(self._parameters), 1 - decay)

    @torch.no_grad()
    def begin_at(self, tensors: Sequence[Tensor]) -> None:
        """Let the average be ``tensors``, in the parameters' order."""
        for own, new in zip(self.tensors, tensors, strict=True):
            own.copy_(new)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters be the average for the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, own in zip(self._parameters, self.tensors, strict=True):
            held = parameter.clone()
            parameter.copy_(own)
            own.copy_(held)
