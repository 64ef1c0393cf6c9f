"""The only names a pickled checkpoint may use, and what each stands for here.

No name is ever imported or looked up: each is a key of a table, and stands for a small value or function of this
module, none of which does more than arrange what it is given. So there is nothing of torch, numpy or Python that a
file could reach, whatever it calls and with whatever arguments.

What real files hold was taken from torch (``torch/_utils.py`` and ``torch/serialization.py``, versions 0.1 to 2.13),
pytorch_lightning's ``dump_checkpoint``, and numpy's ``multiarray`` module.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorasmith.model.stored_tensor import MAX_DIMENSIONS

_MAX_BYTES = 64  # a numpy scalar takes at most 16; longer bytes are nothing that lorasmith needs
_LARGEST = 1 << 62
# The frameworks whose settings and callbacks lie beside the weights in a training checkpoint; nothing of them is kept.
_INERT_MODULE = re.compile(r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)(\.[A-Za-z_][A-Za-z0-9_]*)*")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Function:
    """A name that may be called; ``inert`` says that calling it gives a Stub and that is all."""

    name: str
    make: Callable[..., Any]
    inert: bool = False


@dataclass(frozen=True, slots=True)
class Stub:
    """An object of which nothing is kept."""

    name: str


class PickledDict:
    """A dictionary of the file, as pairs: keys chosen by a stranger are not hashed until they are known to be strings.

    (Numbers can be chosen so that all of them collide, which makes a real dictionary of n take n squared steps.)
    """

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs


class NumpyType:
    """A numpy.dtype of the file: its code ("f8") and byte order, which arrives after it."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "<"


@dataclass(frozen=True, slots=True)
class StorageType:
    """The type of a storage; ``dtype`` is None for one that counts bytes."""

    dtype: torch.dtype | None


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage named by the file: ``numel`` numbers under ``key``, of which a view starts at ``start``."""

    dtype: torch.dtype
    key: str
    numel: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor named by the file; ``offset`` and ``stride`` count numbers of ``dtype``."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def resolve(module: str, name: str) -> Any:
    """Return what a name stands for, or None where it is not allowed. Dotted names never are."""
    found = _NAMES.get((module, name))
    if found is None and _INERT_MODULE.fullmatch(module) and _IDENTIFIER.fullmatch(name):
        return _inert(f"{module}.{name}")
    return found


def whole(value: Any, what: str) -> int:
    """Return a number that counts something.

    Raises:
        ValueError: it is not a whole number from 0 to 2^62.
    """
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"{what} is not a possible number")
    return value


def _wholes(value: Any, what: str) -> tuple[int, ...]:
    if type(value) not in (tuple, list) or len(value) > MAX_DIMENSIONS:
        raise ValueError(f"{what} is not a short row of numbers")
    return tuple(whole(n, what) for n in value)


def _rebuild(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, hooks: Any = None, metadata: Any = None
) -> TensorRef:
    """Stand for torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    if metadata is not None and not (type(metadata) is PickledDict and not metadata.pairs):
        raise ValueError("the tensor is conjugated or negated by a flag, which weights never are")
    if type(storage) is not StorageRef:
        raise ValueError("the tensor is made from something else than a storage")
    return _tensor(storage, offset, size, stride, storage.dtype)


def _rebuild_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> TensorRef:
    """Stand for torch._utils._rebuild_tensor_v3: the types that have no storage class of their own."""
    if type(dtype) is not torch.dtype:
        raise ValueError("the tensor's dtype is not one")
    plain = _rebuild(storage, offset, size, stride, grad, hooks, metadata)
    return _tensor(plain.storage, plain.offset, plain.shape, plain.stride, dtype)


def _tensor(storage: StorageRef, offset: Any, size: Any, stride: Any, dtype: torch.dtype) -> TensorRef:
    shape, steps = _wholes(size, "the tensor's size"), _wholes(stride, "the tensor's stride")
    if len(shape) != len(steps):
        raise ValueError("the tensor's size and stride differ in length")
    return TensorRef(storage, whole(offset, "the tensor's offset"), shape, steps, dtype)


def _parameter(data: Any, grad: Any = True, hooks: Any = None, state: Any = None) -> TensorRef:
    """Stand for torch._utils._rebuild_parameter and _rebuild_parameter_with_state."""
    if type(data) is not TensorRef:
        raise ValueError("a parameter is made from something else than a tensor")
    return data


def _from_type(function: Any, kind: Any, args: Any, state: Any = None) -> Any:
    """Stand for torch._tensor._rebuild_from_type_v2, for plain tensors with attributes."""
    if type(function) is not Function or function.make not in (_rebuild, _rebuild_v3) or type(args) is not tuple:
        raise ValueError("a tensor is made by something else than torch's way of making tensors")
    return function.make(*args)


def _dictionary(pairs: Any = None) -> PickledDict:
    """Stand for collections.OrderedDict; Python 2 hands it a list of pairs."""
    if pairs is not None and type(pairs) is not list:
        raise ValueError("a dictionary is made from something else than a list")
    return PickledDict([] if pairs is None else pairs)


def _default_dictionary(factory: Any = None) -> PickledDict:
    return PickledDict([])


def _encode(text: Any, encoding: Any = "latin1") -> Any:
    """Stand for _codecs.encode, which is how protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes are made from something else than latin-1 text")
    return text.encode("latin-1") if len(text) <= _MAX_BYTES else Stub("bytes")


def _numpy_type(code: Any, align: Any = False, copy: Any = True) -> NumpyType:
    if type(code) is not str or len(code) > _MAX_BYTES:
        raise ValueError("a numpy.dtype is made from something else than its code")
    return NumpyType(code)


def _numpy_scalar(kind: Any, raw: Any = None) -> Any:
    """Stand for numpy's multiarray.scalar: a Python number, or a Stub where it is not a number."""
    if type(kind) is not NumpyType:
        raise ValueError("a numpy scalar has no numpy.dtype")
    form = _NUMPY_NUMBERS.get(kind.code)
    raw = raw.encode("latin-1") if type(raw) is str and raw.isascii() and len(raw) <= _MAX_BYTES else raw
    if form is None or type(raw) is not bytes:
        return Stub("numpy.generic")
    if len(raw) != struct.calcsize(form):
        raise ValueError("a numpy scalar has the wrong number of bytes")
    return struct.unpack((">" if kind.order == ">" else "<") + form, raw)[0]


def _inert(name: str) -> Function:
    return Function(name, lambda *_: Stub(name), inert=True)


_NUMPY_NUMBERS = {
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "Counter"): _default_dictionary,
    ("collections", "defaultdict"): _default_dictionary,
    ("torch", "Size"): lambda sizes=(): _wholes(sizes, "a torch.Size"),
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _numpy_type,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}
_BUILTINS = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, set, str, tuple)
_INERT_NAMES = (
    *(("torch", f"{kind}Tensor") for kind in _STORAGES),
    *(("torch.cuda", f"{kind}Tensor") for kind in _STORAGES),
    *(("torch", "Tensor"), ("torch", "device"), ("torch.nn.parameter", "Parameter")),
    *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray")),
    *(("pathlib", kind) for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(("typing", "Any"), ("argparse", "Namespace")),
    *((module, kind.__name__) for module in ("builtins", "__builtin__") for kind in _BUILTINS),
)
_NAMES: dict[tuple[str, str], Any] = {
    **{name: _inert(".".join(name)) for name in _INERT_NAMES},
    **{name: Function(".".join(name), make) for name, make in _FUNCTIONS.items()},
    **{(m, f"{kind}Storage"): StorageType(t) for kind, t in _STORAGES.items() for m in ("torch", "torch.cuda")},
    **{("torch.storage", kind): StorageType(None) for kind in ("UntypedStorage", "_UntypedStorage")},
    **{("torch", name): getattr(torch, name) for name in _DTYPES if hasattr(torch, name)},
}
