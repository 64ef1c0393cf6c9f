"""Write a safetensors file tensor by tensor, so that a base of any size takes the memory of its largest tensor.

The same tensors give the same bytes, whatever order they come in: tensors of wide numbers first, then by name, as the
format's own library orders them (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorasmith.errors import ModelError
from lorasmith.files import replacing
from lorasmith.model.safetensors_header import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: what it will be, and how to get it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str]) -> Iterator[int]:
    """Write tensors to ``path``, complete or not at all, and yield after each how many bytes have been written.

    Raises:
        ModelError: a tensor is not what was planned, or its numbers are of a kind that the format lacks.
        OutputError: the disk refuses.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        planned = tensors[name]
        if planned.dtype not in _NAMES:
            raise ModelError(f'"{name}" holds {planned.dtype}, which safetensors files lack.', where=str(path))
        span = [end, end := end + planned.nbytes]
        header[name] = {"dtype": _NAMES[planned.dtype], "shape": list(planned.shape), "data_offsets": span}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        written = 0
        for name in names:
            planned = tensors[name]
            tensor = planned.read().contiguous()
            if tensor.dtype != planned.dtype or tuple(tensor.shape) != planned.shape:
                raise ModelError(
                    f'"{name}" is not what it was: {tensor.dtype} {list(tensor.shape)} instead of {planned.dtype} '
                    f"{list(planned.shape)}.",
                    where=str(path),
                    fix="The file it comes from was changed meanwhile; start again.",
                )
            stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            written += planned.nbytes
            yield written
