"""Open a file of weights from anywhere: see what is in it at once, run nothing of it, and read only what is wanted.

    checkpoint = open_checkpoint(Path("v1-5-pruned.ckpt"))
    checkpoint.tensors["model.diffusion_model.out.2.weight"].shape
    checkpoint.scalars["global_step"]
    weight = checkpoint.read("model.diffusion_model.out.2.weight")

What a file is, is seen from its bytes and not from its name. Opening reads the file's list of contents; reading a
tensor reads that tensor's bytes into its own memory, so the peak is what was asked for. A file that is not plainly a
list of tensors is refused before any of it is used: see ``restricted_pickle``, ``zip_members``, ``safetensors_header``.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from lorasmith.errors import ModelError
from lorasmith.model.checkpoint_errors import damaged, shown, unsafe, unsupported
from lorasmith.model.pickle_names import PickledDict, TensorRef
from lorasmith.model.safetensors_header import is_safetensors, read_header
from lorasmith.model.stored_tensor import StoredTensor, count_not_finite, read_tensor
from lorasmith.model.torch_legacy import read_torch_legacy, read_torch_tar
from lorasmith.model.torch_zip import read_torch_zip

Layout = Literal["safetensors", "torch zip", "torch legacy", "torch tar"]
Scalar = int | float | str | bool

_KINDS = "lorasmith reads .safetensors files, and .ckpt, .pt and .bin files that torch wrote."
_WRAPPER = "state_dict"
_MAX_WRAPPERS = 4
_MAX_NAME = 1000
_TORCH_READERS = {"torch zip": read_torch_zip, "torch legacy": read_torch_legacy, "torch tar": read_torch_tar}
_Identity = tuple[int, int, int, int]


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        layout: how the file is written.
        tensors: the weights by name, in the file's order; where the file wraps them in "state_dict", those inside.
        scalars: the numbers, texts and flags beside the weights, such as "epoch" and "global_step".
        metadata: a safetensors file's own; empty in others.
        left_out: the names of what else the file holds, such as "optimizer_states"; it is never read.
    """

    path: Path
    layout: Layout
    tensors: Mapping[str, StoredTensor]
    scalars: Mapping[str, Scalar]
    metadata: Mapping[str, str]
    left_out: tuple[str, ...]
    _identity: _Identity = field(repr=False)

    def read(self, name: str, *, check_finite: bool = False) -> Tensor:
        """Read one tensor into memory of its own, on the CPU, as it is in the file.

        A dense tensor keeps its stride; a view with gaps or overlaps comes back contiguous. Tensors that share a
        storage in the file are each read on their own.

        Args:
            check_finite: refuse a tensor that holds a NaN or an infinity.

        Raises:
            KeyError: there is no tensor of that name.
            ModelError: the tensor is not finite, or the file was changed or cannot be read any more.
        """
        stored = self.tensors[name]
        with _opened(self.path) as (stream, identity):
            if identity != self._identity:
                raise ModelError(
                    "The file was changed while it was in use.", where=str(self.path), fix="Start again with it."
                )
            tensor = read_tensor(stream, stored, str(self.path))
        if check_finite and (count := count_not_finite(tensor)):
            raise damaged(
                f'The weights are not finite: "{shown(name)}" holds {count:,} NaN or infinite numbers of '
                f"{tensor.numel():,}.",
                str(self.path),
            )
        return tensor


def open_checkpoint(path: Path) -> Checkpoint:
    """Find out what a file of weights holds, without reading the weights and without running anything of the file.

    Raises:
        ModelError: the file is missing, damaged, unsafe, or no file of weights; the message says which.
    """
    where = str(path)
    with _opened(path) as (stream, identity):
        size = identity[2]
        layout = _layout(stream, size, where)
        if layout == "safetensors":
            tensors, metadata = read_header(stream, size, where)
            return Checkpoint(path, layout, MappingProxyType(tensors), {}, metadata, (), identity)
        root, starts = _TORCH_READERS[layout](stream, size, where)
    found, scalars, left_out = _contents(root, where)
    tensors = {name: _stored(name, ref, starts, where) for name, ref in found.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) > 4 * size + (1 << 20):
        raise unsafe("The file claims weights many times its own size.", where)
    return Checkpoint(path, layout, MappingProxyType(tensors), scalars, {}, tuple(left_out), identity)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.FileIO, _Identity]]:
    """Open a plain file for reading, without buffers, and say which file it is and of what size."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            kind = "a folder" if path.is_dir() else "no plain file"
            raise ModelError(f"This is {kind}, not a file of weights.", where=str(path), fix=_KINDS)
        with path.open("rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            yield stream, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(
            f"The file cannot be read: {reason}.", where=str(path), fix="Check its name and that you may read it."
        ) from error


def _layout(stream: io.FileIO, size: int, where: str) -> Layout:
    """Return how the file is written, as its first bytes tell."""
    head = stream.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise damaged("The file is empty.", where)
    if head.startswith(b"version https://git-lfs"):
        raise unsupported(
            "This is a git-lfs pointer, a few lines that stand for the file, and not the file itself.",
            where,
            "Run `git lfs pull` in its folder, or download the file itself.",
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        raise unsupported(
            "This is a web page, saved under the name of a model.", where, "Download the file itself; log in if asked."
        )
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "torch zip"
    if is_safetensors(head):
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "torch legacy"
    if head[257:262] == b"ustar":
        return "torch tar"
    if size < 10 or not any(head):
        raise damaged("The file is cut off or blank.", where)
    raise unsupported("This is no file of weights of a known kind.", where, _KINDS)


def _contents(root: Any, where: str) -> tuple[dict[str, TensorRef], dict[str, Scalar], list[str]]:
    """Return the tensors of what was saved, the plain values beside them, and the names of the rest."""
    scalars: dict[str, Scalar] = {}
    left_out: list[str] = []
    level = _strings(root, where)
    for _ in range(_MAX_WRAPPERS):
        inner = level.get(_WRAPPER)
        if type(inner) is not PickledDict:
            break
        scalars |= {name: value for name, value in level.items() if type(value) in (int, float, str, bool)}
        left_out += [name for name, value in level.items() if name not in scalars and name != _WRAPPER]
        level = _strings(inner, where)
    tensors = {name: value for name, value in level.items() if type(value) is TensorRef}
    scalars |= {name: value for name, value in level.items() if type(value) in (int, float, str, bool)}
    left_out += [name for name in level if name not in tensors and name not in scalars]
    if not tensors:
        names = ", ".join(shown(name) for name in list(level)[:5]) or "nothing"
        raise unsupported(f"The file holds no weights by name; it holds {names}.", where, "Choose another file.")
    return tensors, scalars, left_out


def _strings(found: Any, where: str) -> dict[str, Any]:
    """Return a dictionary of the file with those keys that are names."""
    pairs = found.pairs if type(found) is PickledDict else None
    if pairs is None or any(type(pair) not in (tuple, list) or len(pair) != 2 for pair in pairs):
        raise unsupported("The file holds no list of named weights.", where, "Choose another file.")
    names = [(key, value) for key, value in pairs if type(key) is str and len(key) <= _MAX_NAME]
    result = dict(names)
    if len(result) != len(names):
        raise unsafe("The file names something twice.", where)
    return result


def _stored(name: str, ref: TensorRef, starts: dict[str, int], where: str) -> StoredTensor:
    """Return where a tensor lies in the file, having seen that it stays inside its storage."""
    storage, item = ref.storage, ref.storage.dtype.itemsize
    begin = starts[storage.key] + storage.start * item
    tensor = StoredTensor(name, ref.dtype, ref.shape, ref.stride, begin + ref.offset * ref.dtype.itemsize)
    if tensor.numel and tensor.offset + tensor.span > begin + storage.length * item:
        raise unsafe(f'The tensor "{shown(name)}" reaches beyond its storage.', where)
    if tensor.is_scattered:
        raise unsupported(f'The tensor "{shown(name)}" is scattered over {tensor.span / 2**20:,.0f} MiB.', where)
    return tensor
