"""Read the layouts of torch.save before version 1.6.

Version 0.1.10 to 1.5 (and later with ``_use_new_zipfile_serialization=False``), one pickle behind the other:
a magic number, the protocol (1001), a dictionary about the machine, the object, and the list of its storages' keys;
then each storage in that order as its number of elements (int64) and its bytes. A storage's persistent id is
("storage", type, key, location, numel, view), with view = None or (key, offset, numel).

Version 0.1.9 and before, a tar file of

    storages   their number; for each a pickle (key, location, type), its number of elements and its bytes; the views
    tensors    their number; for each a pickle (key, storage's key, type), then dimensions (int32, 4 bytes of nothing),
               size and stride (int64 each), offset (int64)
    pickle     the object; a tensor's persistent id is its key as text
    sys_info   a dictionary about the machine

Source: torch/serialization.py (_legacy_save, _legacy_load).
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from typing import Any

from lorasmith.model.checkpoint_errors import damaged, shown, unsafe, unsupported
from lorasmith.model.pickle_names import PickledDict, StorageRef, StorageType, TensorRef, whole
from lorasmith.model.pickle_opcodes import MAX_BYTES, MAX_OPERATIONS, CutOffError
from lorasmith.model.restricted_pickle import Persistent, no_persistent_ids, read_pickle
from lorasmith.model.stored_tensor import MAX_DIMENSIONS
from lorasmith.model.torch_zip import storage_ref

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_SMALL = 1024  # bytes looked at for a pickle of a few numbers
_MAX_SMALL = MAX_OPERATIONS  # bytes of all such pickles of a file together: about 2,500 weights
_WINDOWS = (1 << 16, 1 << 20)
_BLOCK = 512
_TAR_NAMES = ("sys_info", "pickle", "storages", "tensors")


class _Reader:
    """Reads pickles and numbers one behind the other from a part of the file."""

    def __init__(self, stream: io.FileIO, start: int, end: int, where: str) -> None:
        self.stream = stream
        self.position = start
        self.end = end
        self.where = where
        self._small = 0

    def small(self) -> Any:
        """Read a pickle of a few numbers and names."""
        start = self.position
        value = self._pickle(_SMALL, no_persistent_ids)
        self._small += self.position - start
        if self._small > _MAX_SMALL:
            raise damaged("The file lists too many weights.", self.where)
        return value

    def large(self, persistent: Persistent = no_persistent_ids) -> Any:
        """Read a pickle of any size, looking no further into the weights behind it than must be."""
        for window in _WINDOWS:
            with suppress(CutOffError):
                return self._pickle(window, persistent)
        return self._pickle(MAX_BYTES, persistent)

    def _pickle(self, most: int, persistent: Persistent) -> Any:
        data = self._peek(min(most, self.end - self.position))
        value, length = read_pickle(data, self.where, persistent=persistent, shift=self.position)
        self.position += length
        return value

    def numbers(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(form)
        data = self._peek(size)
        if len(data) < size or self.position + size > self.end:
            raise damaged("The file ends in the middle.", self.where)
        self.position += size
        return struct.unpack(form, data)

    def skip(self, size: int) -> int:
        """Pass over some bytes; return where they start."""
        start = self.position
        if size > self.end - start:
            missing = size - (self.end - start)
            raise damaged(f"The file is cut off: {missing:,} bytes of weights are missing.", self.where)
        self.position += size
        return start

    def _peek(self, size: int) -> bytes:
        self.stream.seek(self.position)
        return self.stream.read(size)


def read_torch_legacy(stream: io.FileIO, size: int, where: str) -> tuple[Any, dict[str, int]]:
    """Return the object that was saved, and for each storage that it names the byte of the file where it starts.

    Raises:
        ModelError: the file is damaged, unsafe, or another kind of pickle.
    """
    reader = _Reader(stream, 0, size, where)
    if reader.small() != _MAGIC:
        raise unsupported("This is a pickle, but none that torch wrote.", where)
    if reader.small() != _PROTOCOL:
        raise unsupported("This file was written by an unknown version of torch.", where)
    _check_machine(reader.small(), where)
    storages: dict[str, StorageRef] = {}

    def storage(identifier: Any) -> StorageRef:
        ref = storage_ref(identifier, views=True)
        known = storages.setdefault(ref.key, ref)
        if (known.dtype, known.numel) != (ref.dtype, ref.numel):
            raise ValueError(f'the storage "{shown(ref.key)}" is described in two ways')
        return ref

    root = reader.large(storage)
    keys = reader.large()
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise unsafe("The file's weights are not those that it lists.", where)
    starts = {}
    for key in keys:
        ref = storages[key]
        (numel,) = reader.numbers("<q")
        if numel != ref.numel:
            raise damaged(f'The storage "{shown(key)}" has another size than the file says.', where)
        starts[key] = reader.skip(numel * ref.dtype.itemsize)
    if reader.position != size:
        raise damaged(f"There are {size - reader.position:,} unexplained bytes at the file's end.", where)
    return root, starts


def _check_machine(info: Any, where: str) -> None:
    pairs = info.pairs if type(info) is PickledDict else []
    if not any(type(key) is str and key == "little_endian" and value is True for key, value in pairs):
        raise unsupported("The file does not say that it was written on a little-endian machine.", where)


def read_torch_tar(stream: io.FileIO, size: int, where: str) -> tuple[Any, dict[str, int]]:
    """Return the object that was saved, and for each storage that it names the byte of the file where it starts.

    Raises:
        ModelError: the file is damaged, unsafe, or another kind of tar.
    """
    members = _tar_members(stream, size, where)
    if missing := [name for name in _TAR_NAMES if name not in members]:
        raise unsupported(f"This tar file is not a checkpoint of torch: it has no {', '.join(missing)}.", where)
    reader = {name: _Reader(stream, *members[name], f"{where}: {name}") for name in _TAR_NAMES}
    _check_machine(reader["sys_info"].small(), where)
    try:
        storages, starts = _tar_storages(reader["storages"])
        tensors = _tar_tensors(reader["tensors"], storages)
    except (ValueError, TypeError) as error:
        raise unsafe(f"The file describes no plain weights: {error}.", where) from error

    def tensor(identifier: Any) -> TensorRef:
        if type(identifier) is not str or identifier not in tensors:
            raise ValueError("a persistent id is not that of a tensor")
        return tensors[identifier]

    return reader["pickle"].large(tensor), starts


def _tar_storages(reader: _Reader) -> tuple[dict[str, StorageRef], dict[str, int]]:
    storages, starts = {}, {}
    for _ in range(whole(reader.small(), "the number of weights")):
        key, _location, kind = reader.small()
        name, (numel,) = str(whole(key, "a storage's key")), reader.numbers("<q")
        if type(kind) is not StorageType or kind.dtype is None or name in storages:
            raise ValueError("a storage is described by the wrong kinds of things")
        storages[name] = StorageRef(kind.dtype, name, whole(numel, "a storage's size"), 0, numel)
        starts[name] = reader.skip(numel * kind.dtype.itemsize)
    for view in reader.large():
        target, root, start, length = (whole(n, "the place of a view") for n in view)
        whole_storage = storages.get(str(root))
        if whole_storage is None or start + length > whole_storage.numel:
            raise ValueError("a view reaches beyond its storage")
        storages[str(target)] = StorageRef(whole_storage.dtype, whole_storage.key, whole_storage.numel, start, length)
    return storages, starts


def _tar_tensors(reader: _Reader, storages: dict[str, StorageRef]) -> dict[str, TensorRef]:
    tensors = {}
    for _ in range(whole(reader.small(), "the number of weights")):
        key, storage, _kind = reader.small()
        dimensions, _ = reader.numbers("<2i")
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError("a tensor has an impossible number of dimensions")
        shape, stride = reader.numbers(f"<{dimensions}q"), reader.numbers(f"<{dimensions}q")
        (offset,) = reader.numbers("<q")
        for n in (*shape, *stride, offset):
            whole(n, "a tensor's size, stride or offset")
        ref = storages.get(str(whole(storage, "a storage's key")))
        if ref is None:
            raise ValueError("a tensor's storage is not in the file")
        tensors[str(whole(key, "a tensor's key"))] = TensorRef(ref, offset, shape, stride, ref.dtype)
    return tensors


def _tar_members(stream: io.FileIO, size: int, where: str) -> dict[str, tuple[int, int]]:
    """Return where each plain file of a tar (POSIX.1-1988 ustar) starts and ends."""
    members: dict[str, tuple[int, int]] = {}
    position = 0
    while position + _BLOCK <= size:
        stream.seek(position)
        header = stream.read(_BLOCK)
        if not any(header):
            return members
        name = header[:100].rstrip(b"\0").decode("latin-1").removeprefix("./")
        try:
            length, checksum = (int(header[a:b].rstrip(b"\0 ") or b"0", 8) for a, b in ((124, 136), (148, 156)))
        except ValueError as error:
            raise damaged("The file is a damaged tar file.", where) from error
        start = position + _BLOCK
        if sum(header[:148]) + 8 * 32 + sum(header[156:]) != checksum or not 0 <= length <= size - start:
            raise damaged("The file is a tar file that is damaged or cut off.", where)
        if header[156:157] not in (b"0", b"\0") or name not in _TAR_NAMES or name in members:
            raise unsafe(f'The tar file holds "{shown(name)}", which is no part of a checkpoint.', where)
        members[name] = (start, start + length)
        position = start + -(-length // _BLOCK) * _BLOCK
    raise damaged("The file is a tar file that is cut off.", where)
