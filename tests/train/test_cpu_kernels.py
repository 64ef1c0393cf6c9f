from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lorasmith.model.lora import LoraConfig, attach
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import TrainSection
from lorasmith.train import cpu_kernels
from lorasmith.train.cpu_kernels import fast_kernels
from lorasmith.train.step import draw, errors

from .helpers import latent_set, text_set

CPU = torch.device("cpu")
Context = Callable[[], AbstractContextManager[Any]]


def fast() -> AbstractContextManager[Any]:
    return fast_kernels(CPU, torch.bfloat16)


def gradients(work: Callable[..., Tensor], inputs: list[Tensor], context: Context, dtype: torch.dtype) -> list[Tensor]:
    """Return the answer and the gradient of each input under a fixed gradient of the answer, in double."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    with context():
        answer = work(*leaves)
        torch.manual_seed(5)
        answer.backward(torch.randn(answer.shape).bfloat16().to(dtype))
    return [answer.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("places", "keys", "heads", "width"), [(64, 64, 4, 16), (100, 7, 3, 20), (1, 5, 2, 8)])
@pytest.mark.parametrize("at_once", [2**20, 1])
def test_attention_and_its_gradients(
    places: int, keys: int, heads: int, width: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "_SOFTMAX_AT_ONCE", at_once)
    monkeypatch.setattr(cpu_kernels, "_is_much", lambda *_: True)
    torch.manual_seed(0)
    inputs = [torch.randn(2, n, heads * width).bfloat16() for n in (places, keys, keys)]

    def attention(*tensors: Tensor) -> Tensor:
        parts = (t.view(2, -1, heads, width).transpose(1, 2) for t in tensors)
        return F.scaled_dot_product_attention(*parts)

    wanted = gradients(attention, inputs, nullcontext, torch.float64)
    for found, true in zip(gradients(attention, inputs, fast, torch.bfloat16), wanted, strict=True):
        assert error(found, true) < 0.02  # bfloat16 has 8 bits


@pytest.mark.parametrize(("places", "width", "much"), [(256, 32, True), (256, 24, False), (16, 64, False)])
def test_much_attention_goes_the_other_way(
    places: int, width: int, much: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(1, 4, places, width).bfloat16().requires_grad_() for _ in range(3)]
    with fast():
        answer = F.scaled_dot_product_attention(*leaves)
    assert ("_AttentionBackward" in str(answer.grad_fn)) == much


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": True}, {"scale": 0.1}])
def test_attention_with_options_is_computed_in_float32(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 8).bfloat16()
    if "attn_mask" in options:
        options = {"attn_mask": torch.randn(6, 6).bfloat16()}
    in_float = {n: o.float() if isinstance(o, Tensor) else o for n, o in options.items()}
    wanted = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **in_float).bfloat16()
    with fast():
        assert torch.equal(F.scaled_dot_product_attention(q, k, v, **options), wanted)


@pytest.mark.parametrize(("n", "size"), [(1, (4, 4)), (4, (4, 4)), (1, (3, 7)), (2, (1, 1))])
def test_a_convolution_over_few_places(n: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_LARGE_WEIGHT", 1)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(n, 12, *size), torch.randn(20, 12, 3, 3), torch.randn(20)
    calls: list[int] = []
    real = F.unfold
    monkeypatch.setattr(F, "unfold", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))

    def like_the_unet(x: Tensor) -> Tensor:
        return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), (1, 1), (1, 1), (1, 1), 1)

    wanted = gradients(like_the_unet, [x], nullcontext, torch.float64)
    found = gradients(like_the_unet, [x], fast, torch.bfloat16)
    assert len(calls) == 1  # it went the other way
    assert all(error(one, other) < 0.02 for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"stride": (2, 2)}, (1, 8, 4, 4)),
        ({"padding": (0, 0)}, (1, 8, 4, 4)),
        ({"groups": 2}, (1, 8, 4, 4)),
        ({}, (5, 8, 4, 4)),  # 80 places
        ({"trained": True}, (1, 8, 4, 4)),
    ],
)
def test_other_convolutions_are_left_alone(
    change: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "_LARGE_WEIGHT", 1)
    torch.manual_seed(0)
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, **change}
    trained = options.pop("trained", False)
    weight = torch.randn(8, 8 // options["groups"], 3, 3).bfloat16().requires_grad_(trained)
    x = torch.randn(shape).bfloat16()
    wanted = F.conv2d(x, weight, None, **options)
    monkeypatch.setattr(F, "unfold", None)
    with fast():
        found = F.conv2d(x, weight, None, **options)
        if trained:
            found.sum().backward()
    assert torch.equal(found, wanted)
    assert (weight.grad is not None) == trained


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_unet_has_the_same_gradient_but_for_rounding(
    sd: StableDiffusion, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "_LARGE_WEIGHT", 1)
    monkeypatch.setattr(cpu_kernels, "_is_much", lambda *_: True)
    parameters = attach(sd, LoraConfig(rank=4, targets="all"), seed=1)
    torch.manual_seed(2)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape) * 0.1

    def gradient(context: Context) -> Tensor:
        latents, text = latent_set(), text_set(sd)
        drawn = draw([0, 1], latents, text, sd.alphas_cumprod, TrainSection(), torch.Generator().manual_seed(0))
        with context():
            torch.autograd.backward(errors(sd, drawn.look_up(latents, text)).mean())
        found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        for parameter in parameters:
            parameter.grad = None
        return found

    wanted = gradient(nullcontext)
    sd.to("cpu", torch.bfloat16)
    plain = gradient(nullcontext)
    if checkpointing:
        sd.unet.train()
        sd.unet.enable_gradient_checkpointing()
    assert error(gradient(fast), wanted) < 1.5 * error(plain, wanted)


def test_outside_and_elsewhere_torch_has_its_own_functions() -> None:
    usual = F.scaled_dot_product_attention, F.conv2d
    with pytest.raises(RuntimeError), fast():
        assert F.conv2d is not usual[1]
        raise RuntimeError
    assert (F.scaled_dot_product_attention, F.conv2d) == usual
    assert isinstance(fast_kernels(torch.device("cuda"), torch.bfloat16), nullcontext)
    assert isinstance(fast_kernels(CPU, torch.float32), nullcontext)
