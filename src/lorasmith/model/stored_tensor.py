"""A tensor that lies in a file: what it is, where its numbers are, and how they are read.

Nothing here knows a file format. Each reader of a format checks its file and says where the tensors lie; reading one
takes memory for that tensor alone, because its bytes go from the file straight into the tensor that is returned.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lorasmith.model.checkpoint_errors import damaged

_CHUNK = 1 << 20  # numbers looked at together by count_not_finite
_ONE_READ = 1 << 26  # bytes asked of the system at once, so that Ctrl-C is answered
_SCATTER = 1 << 26  # bytes that may be read around the numbers of a strided view
MAX_DIMENSIONS = 16


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file. ``stride`` counts numbers, ``offset`` is the byte of the file where the first number lies."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor takes in memory."""
        return self.numel * self.dtype.itemsize

    @property
    def span(self) -> int:
        """How many bytes of the file the tensor reaches over; more than ``nbytes`` where its stride leaves gaps."""
        if self.numel == 0:
            return 0
        return (1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride))) * self.dtype.itemsize

    @property
    def is_scattered(self) -> bool:
        """Whether reading the tensor would take far more memory than the tensor itself."""
        return self.span > 4 * self.nbytes + _SCATTER


def dense_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the stride of a contiguous tensor of this shape."""
    stride = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        stride[axis] = stride[axis + 1] * max(shape[axis + 1], 1)
    return tuple(stride)


def read_tensor(stream: io.FileIO, tensor: StoredTensor, where: str) -> Tensor:
    """Read one tensor from a little-endian file; it owns its memory and is on the CPU.

    A dense tensor keeps its stride (such as channels-last); a view with gaps or overlaps comes back contiguous.

    Raises:
        ModelError: the file ends before the tensor does.
        OSError: the file cannot be read.
    """
    if tensor.numel == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    raw = torch.empty(tensor.span, dtype=torch.uint8)
    _fill(stream, tensor, raw, where)
    # A byte other than 0 and 1 in a bool tensor is undefined behaviour in torch's kernels.
    flat = raw.ne(0) if tensor.dtype is torch.bool else raw.view(tensor.dtype)
    result = flat.as_strided(tensor.shape, tensor.stride)
    return result if tensor.span == tensor.nbytes else result.contiguous()


def _fill(stream: io.FileIO, tensor: StoredTensor, raw: Tensor, where: str) -> None:
    view = raw.numpy().data
    stream.seek(tensor.offset)
    while view:
        count = stream.readinto(view[:_ONE_READ])
        if not count:
            raise damaged(f"The file ends inside one of its weights ({len(view):,} bytes are missing).", where)
        view = view[count:]


def count_not_finite(tensor: Tensor) -> int:
    """Return how many numbers of a tensor are NaN or infinite, in little memory whatever its size."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    flat = torch.as_strided(tensor, (tensor.numel(),), (1,)) if _is_dense(tensor) else tensor.reshape(-1)
    total = 0
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        wide = chunk.float() if chunk.dtype.itemsize == 1 else chunk  # the 8-bit floats lack this operation
        total += chunk.numel() - int(torch.isfinite(wide).sum())
    return total


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's numbers fill its own memory without gaps, in any order of axes."""
    return tensor.storage_offset() == 0 and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
