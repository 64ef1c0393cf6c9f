"""Pictures are looked at by threads or by processes, and nobody can tell which."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from draw import busy, item, write

from lorasmith.dataset import lookers, process_start, seen
from lorasmith.dataset.finding import Finding
from lorasmith.dataset.look import Room
from lorasmith.dataset.lookers import answers, seen_or_why_not


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [write(tmp_path / f"{i}.png", busy(i, 48)) for i in range(4)]
    paths += [write(tmp_path / "item.jpg", item(side=120)), tmp_path / "bad.png", tmp_path / "gone.png"]
    (tmp_path / "bad.png").write_bytes(b"nothing")
    return paths


def same(one: seen.Seen, other: seen.Seen) -> bool:
    """Return whether two looks agree; sums of floats differ in the last digit with where in memory they lie."""
    bare = [replace(each, measures=None) for each in (one, other)]  # type: ignore[arg-type]
    pairs = zip(vars(one.measures).values(), vars(other.measures).values())
    return bare[0] == bare[1] and all(np.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True) for a, b in pairs)


def test_processes_see_what_threads_see(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_start, "MANY", 1)
    monkeypatch.setattr(lookers, "_FEW", 2)
    by_threads = list(answers(pictures, 2, lambda _: None))
    assert multiprocessing.active_children() == []
    by_processes, started = [], False
    for each in answers(pictures, 2, lambda _: None, processes=True):
        by_processes.append(each)
        started |= bool(multiprocessing.active_children())
    assert started
    assert [is_new for _, is_new in by_processes] == [True] * len(pictures)
    for (one, _), (other, _) in zip(by_threads, by_processes):
        if isinstance(one, Finding):
            assert other == one
        else:
            assert isinstance(other, seen.Seen)
            assert same(other, one)
    assert multiprocessing.active_children() == []


def test_what_is_known_is_not_looked_at(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    known = seen_or_why_not(pictures[0])
    assert isinstance(known, seen.Seen)
    monkeypatch.setattr(lookers, "see", None)
    assert list(answers(pictures[:2], 1, lambda _: known)) == [(known, False)] * 2


class _Breaking:
    """Takes work as a pool whose process was killed does."""

    def __init__(self) -> None:
        self.asked = 0

    def submit(self, *_: object) -> Future[object]:
        self.asked += 1
        if self.asked > 2:
            raise BrokenProcessPool
        lost: Future[object] = Future()
        lost.set_exception(BrokenProcessPool())
        return lost

    def shutdown(self, **_: object) -> None:
        pass


def test_threads_do_what_a_killed_process_left(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _Breaking()
    monkeypatch.setattr(process_start, "MANY", 1)
    monkeypatch.setattr(lookers, "_FEW", 0)
    monkeypatch.setattr(lookers, "_processes", lambda _: pool)
    found = [answer for answer, _ in answers(pictures, 2, lambda _: None, processes=True)]
    assert pool.asked >= 2
    for one, path in zip(found, pictures):
        other = seen_or_why_not(path)
        assert same(one, other) if isinstance(one, seen.Seen) and isinstance(other, seen.Seen) else one == other


def test_a_system_without_semaphores_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> object:
        raise OSError(os.strerror(38))

    monkeypatch.setattr(multiprocessing, "get_context", refuse)
    assert lookers._processes(2) is None


def test_a_room_that_processes_share_counts_as_one() -> None:
    room = Room(100, multiprocessing.get_context("spawn"))
    with room(60), room(40):
        assert room._free.value == 0
    with room(1_000_000):  # larger than the room: alone
        assert room._free.value == 0
    assert room._free.value == 100


def test_settings_of_processes_are_gone_afterwards_and_replace_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "own")
    before = dict(os.environ)
    with process_start.ready():
        assert os.environ["OPENBLAS_NUM_THREADS"] == "own"
        assert set(os.environ) - set(before) <= {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert dict(os.environ) == before


def test_the_server_is_started_for_many_pictures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bool] = []
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", lambda: started.append(True))
    monkeypatch.setattr(process_start, "cores", lambda: 2)
    monkeypatch.setattr(process_start, "_begun", False)
    folder = tmp_path / "axe" / "deep"
    folder.mkdir(parents=True)
    for i in range(process_start.MANY - 1):
        (folder / f"{i}.png").touch()
    process_start.begin([tmp_path, tmp_path / "gone"])
    assert not started
    assert not process_start.has_begun()
    (folder / "one more.png").touch()
    process_start.begin([tmp_path])
    monkeypatch.setattr(process_start, "_begun", False)
    process_start.begin([tmp_path / "pictures.zip"])
    has_server = sys.platform == "linux"
    assert (len(started), process_start.has_begun()) == (2 * has_server, has_server)
    monkeypatch.setattr(process_start, "_begun", False)
    monkeypatch.setattr(process_start, "cores", lambda: 1)
    process_start.begin([tmp_path])
    assert len(started) <= 2
