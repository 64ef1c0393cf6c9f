"""Files are complete or absent, and what the disk refuses is said in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from lorasmith import files
from lorasmith.errors import OutputError
from lorasmith.files import (
    new_folder,
    replacing,
    require_writable,
    sha256_file,
    write_bytes,
    write_json,
    write_new,
    write_text,
)


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.bin", b"one")
    write_bytes(tmp_path / "a.bin", b"two")
    write_text(tmp_path / "b.txt", "line\nπ\n")
    write_json(tmp_path / "c.json", {"x": [float("nan"), 1.5], "é": (float("inf"),)})
    assert (tmp_path / "a.bin").read_bytes() == b"two"
    assert (tmp_path / "b.txt").read_bytes() == "line\nπ\n".encode()
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == {"x": [None, 1.5], "é": [None]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "b.txt", "c.json"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(failure), replacing(path) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"half")
        raise failure
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_a_file_gets_the_usual_mode_whatever_the_writer_gave_it(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x")
        temporary.chmod(0o600)
    (tmp_path / "plain").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_an_output_error_with_a_fix(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError) as caught, replacing(tmp_path / "a.safetensors"):
        raise error
    assert str(tmp_path / "a.safetensors") in str(caught.value)
    assert "Free some space" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "out"):
        (tmp_path / "elsewhere" / "input").read_bytes()


def test_a_missing_folder_and_a_file_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_bytes(tmp_path / "no" / "a", b"")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        new_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        new_folder(tmp_path / "file" / "below")


def test_require_writable(tmp_path: Path) -> None:
    require_writable(tmp_path / "new", 10)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(OutputError, match="too full"):
        require_writable(tmp_path, 2**80)


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        require_writable(tmp_path)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_no_other_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:  # as on a memory card
        monkeypatch.setattr("os.link", no_links)
    assert write_new(tmp_path / "a.png", b"one")
    assert not write_new(tmp_path / "a.png", b"two")
    assert (tmp_path / "a.png").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(OutputError):
        write_new(tmp_path / "a.png" / "b.png", b"three")


def test_only_durable_files_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr("os.fsync", waits.append)
    write_bytes(tmp_path / "cached", b"x", durable=False)
    assert (tmp_path / "cached").read_bytes() == b"x" and waits == []
    write_bytes(tmp_path / "kept", b"x")
    assert waits


def test_a_folder_whose_parents_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        new_folder(tmp_path / "file" / "a" / "b" / "c")
    assert caught.value.where == str(tmp_path / "file" / "a" / "b" / "c")


@pytest.mark.parametrize(("tries", "code", "gets_there"), [(3, 32, True), (3, 5, True), (99, 32, False), (1, 1, False)])
def test_a_rename_waits_for_a_scanner_that_holds_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: int, code: int, gets_there: bool
) -> None:
    pauses: list[float] = []
    seen: list[Path] = []

    def held(call: str, path: Path) -> None:
        if call == "rename":
            seen.append(path)
            if len(seen) <= tries:
                error = PermissionError(errno.EACCES, "in use", str(path))
                error.winerror = code  # type: ignore[attr-defined] -- as Windows says it
                raise error

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(files, "before", held)
    monkeypatch.setattr("time.sleep", pauses.append)
    if gets_there:
        write_bytes(tmp_path / "a", b"new")
        assert (tmp_path / "a").read_bytes() == b"new" and len(pauses) == tries
    else:
        with pytest.raises(OutputError, match="Permission denied") as caught:
            write_bytes(tmp_path / "a", b"new")
        assert "close the program that has the file open" in str(caught.value)
        assert (tmp_path / "a").read_bytes() == b"old"
        assert (len(pauses) > 0) == (code == 32) and sum(pauses) < 5
    assert pauses == sorted(pauses)  # longer each time
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_large_file_is_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(files, "before", lambda call, path: calls.append(call))
    data = os.urandom((2 << 20) + 1)
    write_bytes(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
    assert calls == ["open", "write", "write", "write", "sync", "close", "rename", "sync folder"]
