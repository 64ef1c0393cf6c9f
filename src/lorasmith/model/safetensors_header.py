"""Read a safetensors file's header, and prove that it describes the file it is in.

Format: 8 bytes, the header's length N (little-endian); N bytes of JSON, of tensor names to {"dtype", "shape",
"data_offsets": [begin, end]} and "__metadata__" of text to text; then the tensors' bytes, row-major and little-endian,
without gaps (https://github.com/huggingface/safetensors, README). That library lets duplicate names pass, of which the
last one wins; here they are refused like everything else that the format does not allow.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any

import torch

from lorasmith.model.checkpoint_errors import damaged, shown, unsupported
from lorasmith.model.pickle_names import whole
from lorasmith.model.stored_tensor import MAX_DIMENSIONS, StoredTensor, dense_stride

MAX_HEADER = 16 << 20  # Stable Diffusion's is 0.2 MiB, and a LoRA's with the captions of its data a few MiB
_MAX_MARKS = 400_000  # of the JSON's structure: about 40,000 tensors
_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "BOOL": "bool",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "F8_E5M2": "float8_e5m2",
}
DTYPES: dict[str, torch.dtype] = {k: getattr(torch, v) for k, v in _TORCH_NAMES.items() if hasattr(torch, v)}


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these (at least 9) bytes means to be a safetensors file."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def read_header(stream: io.FileIO, size: int, where: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a safetensors file, by name in the order of the header, and its metadata.

    Raises:
        ModelError: the header is damaged, does not fit the file, or names a dtype that is not known.
    """
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if length > size - 8:
        raise damaged(f"The file is cut off or lies: its header claims {length:,} bytes of {size:,}.", where)
    if length > MAX_HEADER:
        raise damaged(f"The file's header is {length:,} bytes long; at most {MAX_HEADER:,} make sense.", where)
    entries = _parse(stream.read(length), where)
    metadata = _metadata(entries.pop("__metadata__", {}), where)
    tensors = {name: _tensor(name, entry, 8 + length, where) for name, entry in entries.items()}
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            kind = "overlaps the one before it" if tensor.offset < end else "leaves unexplained bytes before it"
            raise damaged(f'The tensor "{shown(tensor.name)}" {kind}.', where)
        end += tensor.nbytes
    if end != size:
        what = f"{end - size:,} bytes are missing" if end > size else f"{size - end:,} bytes are unexplained"
        raise damaged(f"The file's header does not fit the file: {what} at its end.", where)
    return tensors, metadata


def _parse(header: bytes, where: str) -> dict[str, Any]:
    # A header of nothing but brackets would take 30 times its size in memory: count them before parsing.
    # Cut at the quotes rather than by a pattern, whose backtracking a hostile header could drive up.
    plain = header.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = plain.count(b'"')
    structure = b"".join(plain.split(b'"')[::2]) if quotes <= _MAX_MARKS else b""
    if quotes > _MAX_MARKS or sum(structure.count(mark) for mark in (b"[", b"{", b",")) > _MAX_MARKS:
        raise damaged("The file's header lists far more than any model has.", where)
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "it is not the JSON that the format asks for"
        raise damaged(f"The file's header is damaged: {reason}.", where) from error
    if type(entries) is not dict:
        raise damaged("The file's header is damaged: it is not a JSON object.", where)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f'it names "{shown(twice)}" twice')
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def _metadata(found: Any, where: str) -> dict[str, str]:
    if type(found) is not dict or any(type(value) is not str for value in found.values()):
        raise damaged("The file's metadata is damaged: it is not text for each name.", where)
    return found


def _tensor(name: str, entry: Any, start: int, where: str) -> StoredTensor:
    """Return the tensor that an entry describes, its own numbers agreeing with each other."""
    try:
        if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError("it lacks its dtype, shape or place, or has more than these")
        if type(entry["shape"]) is not list or len(entry["shape"]) > MAX_DIMENSIONS:
            raise ValueError("its shape is not a short list of numbers")
        shape = tuple(whole(n, "a size") for n in entry["shape"])
        if type(entry["data_offsets"]) is not list or len(entry["data_offsets"]) != 2:
            raise ValueError("its place is not two numbers")
        begin, end = (whole(n, "its place") for n in entry["data_offsets"])
        dtype = DTYPES.get(entry["dtype"]) if type(entry["dtype"]) is str else None
        if dtype is None:
            raise unsupported(f'The tensor "{shown(name)}" has the unknown dtype "{shown(entry["dtype"])}".', where)
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError("its place is not as long as its shape and dtype make it")
    except ValueError as error:
        raise damaged(f'The tensor "{shown(name)}" is described wrongly: {error}.', where) from error
    return StoredTensor(name, dtype, shape, dense_stride(shape), start + begin)
