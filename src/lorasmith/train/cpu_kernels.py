"""Two operations of a bfloat16 UNet on a CPU, faster than torch's own (measured: torch 2.13, one core, AVX512-BF16).

Attention. torch's fused attention takes up to 14 times as long backwards in bfloat16 as in float32, so forwards it is
computed in float32. Backwards softmax(Q K^T) is made again from bfloat16 matrix products, which are fast: over 1,024
places with heads of width 40 that takes 43 to 50 ms instead of 59 ms; over few places or with narrow heads it gains
nothing and is not done. Memory holds the softmax of a few heads at a time, never all.

Convolutions over few places. For each call the whole weight is laid out anew. With 64 places or fewer (SD v1.5 at
256 px: 4x4 latents, weights of up to 59 MB) that takes longer than the arithmetic; as a product with the gathered
neighbourhoods there is nothing to lay out (2,560 to 1,280 channels: 24 ms instead of 94 ms for both ways).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_SOFTMAX_AT_ONCE = 2**20  # numbers
_NARROW, _LITTLE = 32, 2**22  # a head's width, and the products of a whole attention, below which float32 is faster
_FEW_PLACES = 64
_LARGE_WEIGHT = 2**20  # numbers; smaller ones lie in the processor's cache
_CONVOLUTION = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_ATTENTION = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


def fast_kernels(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return a context in which a model in ``dtype`` trains the fastest way on ``device``."""
    return _fast_kernels() if device.type == "cpu" and dtype == torch.bfloat16 else nullcontext()


@contextmanager
def _fast_kernels() -> Iterator[None]:
    # The functions are replaced, since a TorchFunctionMode is off during the backward pass, where gradient
    # checkpointing computes the forward pass again and must come to the same.
    usual_attention, usual_convolution = F.scaled_dot_product_attention, F.conv2d

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        options = {**_ATTENTION, **dict(zip(_ATTENTION, args)), **kwargs}
        plain = options == _ATTENTION and query.dim() == 4
        if plain and query.dtype == key.dtype == value.dtype == torch.bfloat16 and _is_much(query, key):
            return _Attention.apply(query, key, value, usual_attention)  # type: ignore[no-untyped-call]
        in_float32 = {name: _float32(option) for name, option in options.items()}
        answer = usual_attention(*map(_float32, (query, key, value)), **in_float32)
        return answer.to(query.dtype)

    def convolution(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        options = {**_CONVOLUTION, **dict(zip(_CONVOLUTION, args)), **kwargs}
        if _sees_few_places(input, weight, **options):
            return _FewPlaces.apply(input, weight, options["bias"])  # type: ignore[no-untyped-call]
        return usual_convolution(input, weight, *args, **kwargs)

    F.scaled_dot_product_attention, F.conv2d = attention, convolution  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.conv2d = usual_attention, usual_convolution


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _is_much(query: Tensor, key: Tensor) -> bool:
    return query.shape[-1] >= _NARROW and query.numel() * key.shape[-2] >= _LITTLE


class _Attention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(D)) V of (N, H, T, D), (N, H, S, D) and (N, H, S, D), bfloat16."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, fused: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return fused(query.float(), key.float(), value.float()).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        saved = ctx.saved_tensors  # read once: checkpointing computes the forward pass again for each reading
        query, key, value, answer = (tensor.flatten(0, 1) for tensor in (*saved, gradients[0]))
        scale = query.shape[-1] ** -0.5
        heads = max(1, _SOFTMAX_AT_ONCE // (query.shape[1] * key.shape[1]))
        parts = []
        for q, k, v, g in zip(*(tensor.split(heads) for tensor in (query * scale, key, value, answer))):
            softmax = torch.bmm(q, k.mT).softmax(-1)
            for_value = torch.bmm(softmax.mT, g)
            inner = torch._softmax_backward_data(torch.bmm(g, v.mT), softmax, -1, softmax.dtype)
            parts.append((torch.bmm(inner, k) * scale, torch.bmm(inner.mT, q), for_value))
        for_query, for_key, for_value = (torch.cat(part).view(t.shape) for part, t in zip(zip(*parts), saved))
        return for_query, for_key, for_value, None


def _sees_few_places(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    usual = [stride, padding, dilation] in ([(1, 1)] * 3, [1] * 3) and groups == 1 and weight.shape[2:] == (3, 3)
    few = input.dim() == 4 and input.shape[0] * input.shape[2] * input.shape[3] <= _FEW_PLACES
    return frozen and usual and few and weight.numel() >= _LARGE_WEIGHT and input.dtype == torch.bfloat16


class _FewPlaces(torch.autograd.Function):
    """A 3x3 convolution with padding 1 of (N, C, h, w) by a frozen weight, as one matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        around = F.unfold(x, 3, padding=1).mT.flatten(0, 1)
        answer = F.linear(around, weight.flatten(1), bias)
        return answer.view(x.shape[0], -1, weight.shape[0]).mT.reshape(x.shape[0], -1, *x.shape[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        gradient = gradients[0]
        n, size = len(gradient), gradient.shape[2:]
        around = gradient.flatten(2).mT.reshape(-1, weight.shape[0]) @ weight.flatten(1)
        return F.fold(around.view(n, -1, around.shape[1]).mT, size, 3, padding=1), None, None
