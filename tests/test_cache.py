from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorasmith.cache import cache_folder, remembered


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    return []


def test_an_answer_is_made_once_for_the_same_files(tmp_path: Path, asked: list[str]) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"1")

    def ask(what: str = "hash") -> str:
        return remembered(what, (file,), lambda: (asked.append(what), f"made {len(asked)}")[1])

    assert (ask(), ask()) == ("made 1", "made 1")
    assert ask("other") == "made 2"
    file.write_bytes(b"22")
    assert (ask(), ask()) == ("made 3", "made 3")
    os.utime(file, ns=(1, 1))
    assert ask() == "made 4"
    assert len(asked) == 4


def test_a_broken_cache_costs_nothing_but_time(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"1")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "hashes.json").write_bytes(b"[1]")
    assert remembered("hash", (file,), lambda: "made") == "made"
    assert remembered("hash", (file,), lambda: "not asked") == "made"
    (tmp_path / "cache" / "hashes.json").write_bytes(b"\xff{")
    assert remembered("hash", (file,), lambda: "again") == "again"
    assert remembered("hash", (tmp_path / "gone",), lambda: "gone") == "gone"
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "file"))
    assert cache_folder() == tmp_path / "file"
    assert remembered("hash", (file,), lambda: "third") == "third"
