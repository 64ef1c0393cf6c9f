"""One owner: by the system's lock, and where that tells nothing by signs of life."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lorasmith.errors import RunError
from lorasmith.run_lock import OWNER_FILE, SILENT, RunLock, heartbeat_age, is_held, read_owner

HOLD = """
import sys, time
from pathlib import Path
from lorasmith.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_owner_is_told_who_the_first_is_and_a_dead_one_is_no_owner(tmp_path: Path) -> None:
    source = str(Path(__file__).parents[1] / "src")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": source})
    try:
        assert first.stdout and first.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(RunError) as caught:
            RunLock(tmp_path).acquire()
        for word in (f"pid {first.pid}", socket.gethostname(), "since 20", f"lorasmith stop {tmp_path}"):
            assert word in str(caught.value)
    finally:
        first.kill()
        first.wait()
    assert not is_held(tmp_path)
    owner = read_owner(tmp_path)
    assert owner and owner.pid == first.pid  # it did not end by itself
    lock = RunLock(tmp_path).acquire()
    again = read_owner(tmp_path)
    assert again and again.pid == os.getpid() and heartbeat_age(tmp_path) < SILENT
    assert is_held(tmp_path)
    lock.release()
    assert read_owner(tmp_path) is None and not is_held(tmp_path)


def write_owner(folder: Path, host: str, pid: int, born: float, age: float) -> None:
    path = folder / OWNER_FILE
    path.write_text(json.dumps({"host": host, "pid": pid, "born": born, "since": "then"}))
    os.utime(path, (time.time() - age,) * 2)


def test_where_locks_do_nothing_signs_of_life_decide(tmp_path: Path) -> None:
    write_owner(tmp_path, "another-host", 1, 0.0, age=5)
    assert is_held(tmp_path)
    with pytest.raises(RunError, match="another-host"):
        RunLock(tmp_path).acquire()
    write_owner(tmp_path, "another-host", 1, 0.0, age=SILENT + 5)
    assert not is_held(tmp_path)
    RunLock(tmp_path).acquire().release()

    parent = psutil.Process().parent()
    assert parent is not None
    write_owner(tmp_path, socket.gethostname(), parent.pid, parent.create_time(), age=1000)
    assert is_held(tmp_path)  # that very process lives
    write_owner(tmp_path, socket.gethostname(), parent.pid, parent.create_time() - 100, age=0)
    assert not is_held(tmp_path)  # another process has its number now


def test_an_owner_file_that_says_nothing_is_nobody(tmp_path: Path) -> None:
    for text in ("", "[]", '{"host": 1}', "\0"):
        (tmp_path / OWNER_FILE).write_text(text)
        assert read_owner(tmp_path) is None
    RunLock(tmp_path).acquire().release()
