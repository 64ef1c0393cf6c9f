"""Find the members of a zip file that torch wrote, trusting nothing that it says of itself.

The layout is that of PKWARE's APPNOTE 6.3.10 (sections 4.3 to 4.5). torch stores its members uncompressed
(caffe2/serialize/inline_container.cc), so a member is a plain range of the file's bytes; a file that is anything but a
row of such ranges, each named the same in both of its headers and none overlapping another, is refused.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

from lorasmith.model.checkpoint_errors import damaged, shown, unsafe, unsupported

MAX_MEMBERS = 20_000
_MAX_DIRECTORY = 4 << 20
_MAX_EXTRA = 4096
_NONE16, _NONE32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _DESCRIPTOR = 0x1 | 0x40 | 0x2000, 0x8
_DESCRIPTOR_SIZES = (12, 16, 20, 24)  # with or without a signature, 32 or 64 bit

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the archive: ``size`` bytes of the file from byte ``offset``."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Entry:
    name: bytes
    flags: int
    size: int
    header: int


def read_members(stream: io.FileIO, size: int, where: str) -> dict[str, Member]:
    """Return the members of the zip file that ``stream`` of ``size`` bytes holds, by name, in the order of the file.

    Raises:
        ModelError: the archive is damaged, compressed, or made to deceive.
    """
    try:
        start, length, count = _directory(stream, size, where)
        stream.seek(start)
        entries = _entries(_read(stream, length), count, where)
        return _members(stream, entries, start, where)
    except struct.error as error:
        raise damaged("The file's list of contents is cut off.", where) from error


def _read(stream: io.FileIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise struct.error
    return data


def _directory(stream: io.FileIO, size: int, where: str) -> tuple[int, int, int]:
    """Return where the central directory starts, its length in bytes, and its number of entries."""
    tail_size = min(size, _END64.size + _LOCATOR.size + _END.size)
    stream.seek(size - tail_size)
    tail = _read(stream, tail_size)
    if tail[-_END.size : -_END.size + 4] != b"PK\5\6":
        raise damaged("The file is cut off: it does not end as a zip file does.", where)
    _, disk, first, here, count, length, start, comment = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    if tail[-_END.size - _LOCATOR.size :][:4] == b"PK\6\7":
        _, disk64, position, disks = _LOCATOR.unpack(tail[-_END.size - _LOCATOR.size : -_END.size])
        end = size - tail_size
        if position != end or tail[:4] != b"PK\6\6" or disks > 1 or disk64:
            raise unsafe("The file's two lists of contents (zip64) are not where they should be.", where)
        _, record, _, _, disk, first, here64, count64, length64, start64 = _END64.unpack(tail[: _END64.size])
        counts, places = ((count, count64), (here, here64)), ((length, length64), (start, start64))
        same = all(short in (long, _NONE16) for short, long in counts)
        if record != _END64.size - 12 or not same or any(short not in (long, _NONE32) for short, long in places):
            raise unsafe("The file's two lists of contents (zip64) contradict each other.", where)
        count, length, start, here = count64, length64, start64, here64
    if disk or first or here != count or comment:
        raise unsupported("The file is a zip in several volumes, or with a comment; torch writes neither.", where)
    if count > MAX_MEMBERS or length > _MAX_DIRECTORY:
        raise damaged(f"The file claims {count:,} contents; a checkpoint has at most {MAX_MEMBERS:,}.", where)
    if start + length != end:
        raise damaged("The file's list of contents is not at its end: it is cut off, or something was added.", where)
    return start, length, count


def _entries(directory: bytes, count: int, where: str) -> list[_Entry]:
    entries, position = [], 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(directory, position)
        flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
        name_size, extra_size, note_size, disk, header = (*fields[10:14], fields[16])
        position += _CENTRAL.size
        name = directory[position : position + name_size]
        extra = directory[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + note_size
        if fields[0] != b"PK\1\2" or position > len(directory):
            raise struct.error
        size, packed, header = _wide(extra, size, packed, header)
        if method or packed != size:
            raise unsupported(
                f'"{_name(name)}" in this file is compressed, which torch never does.',
                where,
                "If it was packed by a zip program, unpack it; else get the model as a safetensors file.",
            )
        if flags & _ENCRYPTED or disk:
            raise unsafe(f'"{_name(name)}" in this file is encrypted or elsewhere.', where)
        entries.append(_Entry(name, flags, size, header))
    if position != len(directory):
        raise damaged("The file's list of contents is longer than it says.", where)
    return entries


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return the sizes and the place of an entry, with those of its zip64 field (APPNOTE 4.5.3) where there is one."""
    values, position = [size, packed, header], 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            field = extra[position + 4 : position + 4 + length]
            for index, value in enumerate(values):
                if value == _NONE32:
                    values[index] = struct.unpack_from("<Q", field)[0]
                    field = field[8:]
            break
        position += 4 + length
    return values[0], values[1], values[2]


def _members(stream: io.FileIO, entries: list[_Entry], directory: int, where: str) -> dict[str, Member]:
    """Return the members, having seen that their ranges lie one behind the other from byte 0 to the directory."""
    members: dict[str, Member] = {}
    end, descriptor = 0, False
    for entry in sorted(entries, key=lambda entry: entry.header):
        name = _name(entry.name)
        _check_gap(entry.header - end, descriptor, name, where)
        if entry.header + _LOCAL.size + len(entry.name) + entry.size > directory:
            raise unsafe(f'"{name}" in this file reaches beyond its end.', where)
        offset = _data_offset(stream, entry, where)
        end, descriptor = offset + entry.size, bool(entry.flags & _DESCRIPTOR)
        if end > directory:
            raise unsafe(f'"{name}" in this file reaches beyond its end.', where)
        plain = entry.name.decode("latin-1")
        _check_name(plain, where)
        if plain in members:
            raise unsafe(f'The file holds "{name}" twice.', where)
        members[plain] = Member(plain, offset, entry.size)
    _check_gap(directory - end, descriptor, "the list of contents", where)
    return members


def _check_gap(gap: int, descriptor: bool, name: str, where: str) -> None:
    if gap < 0:
        raise unsafe(f'"{name}" in this file overlaps what comes before it.', where)
    if gap and not (descriptor and gap in _DESCRIPTOR_SIZES):
        raise unsafe(f'There are {gap:,} hidden bytes before "{name}" in this file.', where)


def _data_offset(stream: io.FileIO, entry: _Entry, where: str) -> int:
    """Return where an entry's bytes start, having seen that its own header says the same as the directory."""
    stream.seek(entry.header)
    header = _read(stream, _LOCAL.size + len(entry.name))
    signature, _, flags, method, _, _, _, packed, size, name_size, extra_size = _LOCAL.unpack_from(header)
    later = flags & _DESCRIPTOR  # the sizes come after the bytes, and may be 0 here
    sizes = (entry.size, _NONE32, 0) if later else (entry.size, _NONE32)
    same = (signature, method, name_size, flags) == (b"PK\3\4", 0, len(entry.name), entry.flags)
    if not same or header[_LOCAL.size :] != entry.name or packed not in sizes or size not in sizes:
        raise unsafe(f'The two headers of "{_name(entry.name)}" in this file contradict each other.', where)
    if extra_size > _MAX_EXTRA:
        raise unsafe(f'"{_name(entry.name)}" in this file has {extra_size:,} hidden bytes.', where)
    return entry.header + _LOCAL.size + len(entry.name) + int(extra_size)


def _check_name(name: str, where: str) -> None:
    parts = name.split("/")
    # A name that a program unpacking the file would write elsewhere, or as something else than it seems.
    if "\\" in name or ":" in name or not name.isprintable() or {"", ".", ".."} & set(parts):
        raise unsafe(f'The file holds something under the name "{shown(name)}", which leaves its folder.', where)


def _name(name: bytes) -> str:
    return shown(name.decode("latin-1"))
