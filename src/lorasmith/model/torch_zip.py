"""Read the layout of torch.save since version 1.6: a zip file with one pickle and one member for each storage.

    NAME/data.pkl               the pickle; its persistent ids are ("storage", type, key, location, numel)
    NAME/data/KEY               a storage's bytes
    NAME/version                "2" or "3"
    NAME/byteorder              "little" or "big", since torch 2.1
    NAME/.format_version, NAME/.storage_alignment, NAME/.data/serialization_id

Source: torch/serialization.py (_save, _load) and caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import io
import re
from typing import Any

import torch

from lorasmith.model.checkpoint_errors import damaged, shown, unsafe, unsupported
from lorasmith.model.pickle_names import StorageRef, StorageType, whole
from lorasmith.model.pickle_opcodes import MAX_BYTES
from lorasmith.model.restricted_pickle import read_pickle
from lorasmith.model.zip_members import Member, read_members

_KNOWN = re.compile(r"data\.pkl|data/[0-9A-Za-z_]+|version|byteorder|\.format_version|\.storage_alignment|\.data/\w+")


def read_torch_zip(stream: io.FileIO, size: int, where: str) -> tuple[Any, dict[str, int]]:
    """Return the object that was saved, and for each storage that it names the byte of the file where it starts.

    Raises:
        ModelError: the file is damaged, unsafe, or another kind of zip.
    """
    members = _inside_one_folder(read_members(stream, size, where), where)
    if b"big" in _small(stream, members.get("byteorder")):
        raise unsupported("The file was written on a big-endian machine.", where)
    pickle = members["data.pkl"]
    if pickle.size > MAX_BYTES:
        raise damaged(f"The file's list of weights takes {pickle.size:,} bytes; at most {MAX_BYTES:,} do.", where)
    stream.seek(pickle.offset)
    starts: dict[str, int] = {}

    def storage(identifier: Any) -> StorageRef:
        ref = storage_ref(identifier, views=False)
        member = members.get(f"data/{ref.key}")
        if member is None:
            raise ValueError(f'the storage "{shown(ref.key)}" is not in the file')
        if member.size != ref.numel * ref.dtype.itemsize:
            raise ValueError(f'the storage "{shown(ref.key)}" has another size than the file says')
        starts[ref.key] = member.offset
        return ref

    data = stream.read(pickle.size)
    root, end = read_pickle(data, f"{where}: {pickle.name}", persistent=storage)
    if end != len(data):
        raise unsafe("Something is hidden behind the file's list of weights.", f"{where}: {pickle.name}, byte {end}")
    return root, starts


def storage_ref(identifier: Any, *, views: bool) -> StorageRef:
    """Return the storage that a persistent id of torch names; ``views`` allows a sixth part, as before torch 1.6.

    Raises:
        ValueError: the persistent id is not of that form.
    """
    if type(identifier) is not tuple or len(identifier) != 5 + views or identifier[0] != "storage":
        raise ValueError("a persistent id is not that of a storage")
    kind, key, location, numel = identifier[1:5]
    if type(kind) is not StorageType or type(key) is not str or type(location) is not str:
        raise ValueError("a storage is described by the wrong kinds of things")
    dtype, numel = kind.dtype or torch.uint8, whole(numel, "a storage's size")
    start, length = 0, numel
    if views and identifier[5] is not None:
        if type(identifier[5]) is not tuple or len(identifier[5]) != 3:
            raise ValueError("a view of a storage is described by the wrong kinds of things")
        start, length = (whole(n, "the place of a view") for n in identifier[5][1:])
        if start + length > numel:
            raise ValueError("a view reaches beyond its storage")
    return StorageRef(dtype, key, numel, start, length)


def _inside_one_folder(members: dict[str, Member], where: str) -> dict[str, Member]:
    """Return the members by their names inside the archive's one folder."""
    folders = {name.partition("/")[0] for name in members}
    inside = {name.partition("/")[2]: member for name, member in members.items()}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        raise unsupported("This is a program (TorchScript), not a file of weights.", where)
    if "data.pkl" not in inside or len(folders) != 1:
        names = ", ".join(shown(name) for name in list(members)[:3]) or "nothing"
        raise unsupported(
            f"This zip file is not a checkpoint of torch; it holds {names}.",
            where,
            "If the model is inside, unpack the file and give the model's own name.",
        )
    strange = [name for name in inside if not _KNOWN.fullmatch(name)]
    if strange:
        raise unsafe(f'The file holds "{shown(strange[0])}", which is no part of a checkpoint.', where)
    return inside


def _small(stream: io.FileIO, member: Member | None) -> bytes:
    if member is None:
        return b""
    stream.seek(member.offset)
    return stream.read(min(member.size, 16))
