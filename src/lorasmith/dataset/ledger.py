"""The ledger of a curation: every picture that went in, what was done to it, and what came out or why nothing did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorasmith.files import json_text

NAME = "ledger.jsonl"


@dataclass(frozen=True)
class Operation:
    """One operation on one picture.

    Args:
        name: as ``crop`` or ``lines``.
        applied: whether it changed the picture; if not, ``how`` has the reason under ``why``.
        how: its parameters, JSON-ready.
    """

    name: str
    applied: bool
    how: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One picture of the source.

    Args:
        picture: the class and its name in it, as ``axe/1.png``.
        sha256: of the file; empty where it could not be read.
        size: width and height, upright; None where it could not be read.
        out: the files that were made of it, relative to the new folder; the first is the picture, others are copies.
        excluded: why nothing was made of it; None where something was.
        operations: in the order they were done.
    """

    picture: str
    sha256: str
    size: tuple[int, int] | None
    out: tuple[str, ...]
    excluded: str | None
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class Balance:
    """What a ledger adds up to."""

    pictures_in: int
    pictures_out: int
    excluded: int
    copies: int
    operations: dict[str, int]


def balance(entries: Sequence[Entry], found: int) -> Balance:
    """Add up a ledger and prove that no picture was lost.

    Args:
        entries: one for each picture.
        found: how many pictures the source holds.

    Raises:
        AssertionError: a picture is missing, or is both out and excluded: a fault of the program, never of the data.
    """
    for entry in entries:
        if bool(entry.out) == (entry.excluded is not None):
            raise AssertionError(f"{entry.picture} is neither out nor excluded, or both")
    out = sum(bool(entry.out) for entry in entries)
    excluded = sum(entry.excluded is not None for entry in entries)
    if not len(entries) == found == out + excluded:
        raise AssertionError(f"{found} pictures in, {out} out and {excluded} excluded")
    names = [name for entry in entries for name in entry.out]
    if len(set(names)) != len(names):
        raise AssertionError("two pictures were written under one name")
    done = Counter(o.name for entry in entries for o in entry.operations if o.applied)
    return Balance(len(entries), out, excluded, len(names) - out, dict(sorted(done.items())))


def ledger_text(entries: Sequence[Entry], total: Balance, head: dict[str, Any]) -> str:
    """Return the ledger as JSON lines: a first line with the plan and the sums, then one for each picture.

    Nothing in it depends on the time or the machine, so the same plan on the same pictures gives the same bytes.
    """
    lines = [json_text({"ledger": 1, **head, **asdict(total)})]
    lines += [json_text(asdict(entry)) for entry in entries]
    return "\n".join(lines) + "\n"
