"""Decode the operations of a pickle, of which only those that files of weights need are allowed.

Protocols 2 to 5, as torch writes them (PEP 307, 3154 and 574; Lib/pickletools.py describes each opcode). Not among
them are the text opcodes of protocols 0 and 1, classes made by INST and OBJ, extension codes, text persistent ids,
out-of-band buffers, and numbers and texts of more than 4 GiB.
"""

from __future__ import annotations

import pickletools
import struct
from typing import Any

from lorasmith.errors import ModelError
from lorasmith.model.checkpoint_errors import DAMAGED_FIX, damaged, shown, unsafe
from lorasmith.model.pickle_names import resolve

MAX_BYTES = 16 << 20
MAX_OPERATIONS = 200_000  # Stable Diffusion with EMA and optimizer states needs about 90,000
_MAX_NAMES = 10_000  # a pickle names each of its few dozen globals once, and remembers it
_MAX_LONG = 32  # bytes
_MAX_LINE = 1000
_STOP, _PROTO = 0x2E, 0x80

_ALONE = """
    MARK POP POP_MARK MEMOIZE STACK_GLOBAL REDUCE BUILD NEWOBJ BINPERSID EMPTY_DICT EMPTY_LIST EMPTY_SET TUPLE TUPLE1
    TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS ADDITEMS FROZENSET
"""
_NUMBERED = "BININT=<i BININT1=<B BININT2=<H BINFLOAT=>d BINPUT=<B LONG_BINPUT=<I BINGET=<B LONG_BINGET=<I FRAME=<Q"
_COUNTED = """
    BINUNICODE=<I SHORT_BINUNICODE=<B LONG1=<B BINSTRING=<i SHORT_BINSTRING=<B BINBYTES=<I SHORT_BINBYTES=<B
"""
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_CODES = {name: code for code, name in _NAMES.items()}


def _forms(table: str) -> dict[int, tuple[str, struct.Struct]]:
    """Return, for each opcode of a table of NAME=FORM, its name and the form of the number that follows it."""
    rows = (entry.split("=", 1) for entry in table.split())
    return {_CODES[name]: (name, struct.Struct(form)) for name, form in rows}


_NAMING = (_CODES["GLOBAL"], _CODES["STACK_GLOBAL"])
_PLAIN = {_CODES[name]: name for name in _ALONE.split()}
_WITH_NUMBER = _forms(_NUMBERED)
_WITH_COUNT = _forms(_COUNTED)
_CONSTANTS: dict[int, Any] = {
    _CODES["NONE"]: None,
    _CODES["NEWTRUE"]: True,
    _CODES["NEWFALSE"]: False,
    _CODES["EMPTY_TUPLE"]: (),
}

Operation = tuple[str, Any, int]


class CutOffError(ModelError):
    """The pickle goes on behind what was looked at."""


def place(where: str, position: int) -> str:
    return f"{where}, byte {position}"


def scan(data: bytes, start: int, shift: int, where: str) -> tuple[list[Operation], int]:
    """Decode and check every operation; nothing is kept but plain values and allowed names."""
    operations: list[Operation] = []
    names = 0
    position, end = start, min(len(data), start + MAX_BYTES)
    try:
        if data[position] != _PROTO or not 2 <= data[position + 1] <= 5:
            raise damaged("This is not a pickle of protocol 2 to 5, as torch writes them.", place(where, shift + start))
        position += 2
        while data[position] != _STOP:
            if len(operations) == MAX_OPERATIONS:
                raise damaged(f"The pickle has over {MAX_OPERATIONS:,} operations.", place(where, shift + position))
            name, argument, after = _decode(data, position, shift, where)
            operations.append((name, argument, position))
            names += data[position] in _NAMING
            if names > _MAX_NAMES:
                raise damaged(f"The pickle has over {_MAX_NAMES:,} globals.", place(where, shift + position))
            position = after
            if position >= end:
                raise IndexError
        return operations, position + 1
    except (IndexError, struct.error) as error:
        what = "is too large" if end - start == MAX_BYTES else "ends in the middle"
        raise CutOffError(
            f"The list of weights in this file (a pickle) {what}.", where=place(where, shift + end), fix=DAMAGED_FIX
        ) from error


def _decode(data: bytes, position: int, shift: int, where: str) -> tuple[str, Any, int]:
    """Return the operation at a position: its name, its argument, and where the next one is."""
    code, after = data[position], position + 1
    if plain := _PLAIN.get(code):
        return plain, None, after
    if numbered := _WITH_NUMBER.get(code):
        name, form = numbered
        return name, form.unpack_from(data, after)[0], after + form.size
    if code in _CONSTANTS:
        return "CONSTANT", _CONSTANTS[code], after
    if counted := _WITH_COUNT.get(code):
        name, form = counted
        size, after = form.unpack_from(data, after)[0], after + form.size
        if not 0 <= size <= len(data) - after:
            raise IndexError
        try:
            return "CONSTANT", _value(name, data[after : after + size]), after + size
        except ValueError as error:
            raise damaged(f"The pickle holds a broken {name}: {error}.", place(where, shift + position)) from error
    if code == _CODES["GLOBAL"]:
        module, name, after = _two_lines(data, after)
        return "CONSTANT", allowed(module, name, place(where, shift + position)), after
    what = f"The pickle uses {_NAMES.get(code, f'an unknown opcode, {code:#04x}')}"
    if code == _CODES["INST"]:
        module, name, _ = _two_lines(data, after)
        what += f" to make {shown(f'{module}.{name}')}"
    raise unsafe(f"{what}, which files of weights never need.", place(where, shift + position))


def _two_lines(data: bytes, position: int) -> tuple[str, str, int]:
    """Return a GLOBAL's module and name; both are ASCII in every name that is allowed."""
    middle = data.find(b"\n", position, position + _MAX_LINE)
    end = data.find(b"\n", middle + 1, middle + _MAX_LINE)
    if middle < 0 or end < 0:
        raise IndexError
    return data[position:middle].decode("latin-1"), data[middle + 1 : end].decode("latin-1"), end + 1


def _value(name: str, raw: bytes) -> Any:
    if name in ("BINUNICODE", "SHORT_BINUNICODE"):
        return raw.decode("utf-8")
    if name == "LONG1":
        if len(raw) > _MAX_LONG:
            raise ValueError("a number too large to mean anything")
        return int.from_bytes(raw, "little", signed=True)
    if name in ("BINSTRING", "SHORT_BINSTRING") and raw.isascii():  # Python 2's str: text or bytes
        return raw.decode("ascii")
    return raw


def allowed(module: str, name: str, where: str) -> Any:
    found = resolve(module, name)
    if found is None:
        raise unsafe(f"The file asks for {shown(f'{module}.{name}')}, which is no part of a model's weights.", where)
    return found
