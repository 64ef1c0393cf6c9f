"""Attention in float32 within a bfloat16 model on a CPU.

There torch's fused attention takes up to 14 times as long backwards in bfloat16 as in float32 (torch 2.13, AVX512-BF16,
64 tokens of width 16: 14 ms and 1 ms), whereas matrix products and convolutions gain from bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def fast_attention(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return a context in which attention is computed the fastest way for training on this device."""
    return _Float32Attention() if device.type == "cpu" and dtype == torch.bfloat16 else nullcontext()


class _Float32Attention(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return func(*map(_float32, args), **{k: _float32(v) for k, v in kwargs.items()}).to(args[0].dtype)
        return func(*args, **kwargs)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
