"""The ledger adds up, or the program stops."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lorasmith.dataset.ledger import Entry, Operation, balance, ledger_text

OUT = Entry(
    "axe/1.png", "ab", (4, 5), ("1.png", "1-mirror.png"), None, (Operation("crop", True, {"box": [0, 0, 1, 1]}),)
)
GONE = Entry("axe/2.png", "", None, (), "it is empty")


def test_it_adds_up() -> None:
    total = balance([OUT, GONE], found=2)
    assert (total.pictures_in, total.pictures_out, total.excluded, total.copies) == (2, 1, 1, 1)
    assert total.operations == {"crop": 1}
    first, *lines = [json.loads(line) for line in ledger_text([OUT, GONE], total, {"plan": "x"}).splitlines()]
    assert (first["pictures_in"], first["plan"]) == (2, "x")
    assert [line["picture"] for line in lines] == ["axe/1.png", "axe/2.png"]
    assert lines[1]["excluded"] == "it is empty"


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([OUT, GONE], 3),  # one was lost
        ([OUT, replace(GONE, excluded=None)], 2),  # neither out nor excluded
        ([OUT, replace(OUT, excluded="why")], 2),  # both
        ([OUT, replace(OUT, picture="axe/3.png")], 2),  # under one name
    ],
)
def test_a_lost_picture_is_a_fault(entries: list[Entry], found: int) -> None:
    with pytest.raises(AssertionError):
        balance(entries, found)


def test_operations_that_were_not_done_do_not_count() -> None:
    left = replace(OUT, operations=(Operation("crop", False, {"why": "not sure"}),))
    assert balance([left], 1).operations == {}
