"""Count what a computation needs without doing it: on torch's meta device, where tensors have shapes and no data.

Autograd holds on to meta tensors just as long as to real ones. So the bytes alive at any moment of a forward and
backward pass on the meta device are those of the real one: weights aside, what is saved for the backward pass, what
is in use, and the gradients. Only what a kernel takes for itself inside is not seen.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is entered, what every operation of torch makes and computes, on any device.

    Attributes:
        live: bytes of the tensors made since it was entered that are still alive; views count with what they show.
        peak: the most that ``live`` has been.
        flops: floating-point operations of matrix products, convolutions and attention (a multiply-add is two).
        moved: bytes read and written by operations, views aside.
        operations: how many there were, views aside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.moved = self.operations = 0
        self.flops = 0.0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        taken = [*_tensors(args), *_tensors(kwargs.values())]
        for tensor in taken:
            self._hold(tensor, made=False)
        result = func(*args, **kwargs)
        made = list(_tensors((result,)))
        new = sum([self._hold(tensor, made=True) for tensor in made])
        self.peak = max(self.peak, self.live)
        self.flops += _flops(func, args, kwargs, result)
        if new or func._schema.is_mutable:
            self.operations += 1
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*taken, *made))
        return result

    def _hold(self, tensor: Tensor, *, made: bool) -> bool:
        """Count a tensor's storage while it lives; return whether it was new. What was only taken counts nothing."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        size = storage.nbytes() if made else 0

        def gone(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        return made


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> float:
    packet = func._overloadpacket
    if packet in (_FUSED, _FUSED_BACKWARD):
        query, key = args[1:3] if packet is _FUSED_BACKWARD else args[:2]
        products = 5 if packet is _FUSED_BACKWARD else 2  # the backward pass computes the scores once more
        return float(products * 2 * query.numel() * key.shape[-2])
    formula = flop_registry.get(packet)
    return float(formula(*args, **kwargs, out_val=result)) if formula else 0.0


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let attention on the meta device save what the fused kernels of real devices do, for the block.

    These save the query, key, value, result and the logarithm of each row's sum. Torch would choose the plain
    arithmetic on the meta device, which saves the whole matrix of attention.
    """
    usual: Any = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
        if query.device.type == "meta":
            return _FUSED(query, key, value)[0]
        return usual(query, key, value, *args, **options)

    functional: Any = F  # to mypy its functions are constant
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual


def without_data(module: nn.Module) -> Any:
    """Return a copy of ``module`` on the meta device: without data, and without hooks, which are for the real one."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    bare = copy.deepcopy(module, memo)
    for part in bare.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return bare


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors that share no storage."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
