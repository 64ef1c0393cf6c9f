"""Who owns a run: one process at a time, by the system's lock on run.lock.

The lock ends with its process, however that dies. Beside it, owner.json says who holds it and is touched every few
seconds. On disks where locks do nothing, as some in a network, that sign of life or the process itself decides.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from lorasmith.errors import RunError
from lorasmith.files import json_text, output_error, write_bytes

LOCK_FILE, OWNER_FILE = "run.lock", "owner.json"
HEARTBEAT = 10.0  # seconds between signs of life
SILENT = 6 * HEARTBEAT  # an owner on another host without one for so long is gone
_WAIT = 1.0  # seconds; who only looks whether the lock is held has it for a moment


@dataclass(frozen=True)
class Owner:
    """The process that holds a run. ``born`` is its start in seconds since 1970, ``since`` when it took the run."""

    host: str
    pid: int
    born: float
    since: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, since {self.since}"

    def is_alive(self, heartbeat_age: float) -> bool:
        """Return whether the process runs, so far as can be seen from this host."""
        if self.host != socket.gethostname():
            return heartbeat_age < SILENT
        if self.pid == os.getpid():
            return False  # this process knows that it does not hold the run
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.born) < 5)
        except psutil.Error:
            return False


class RunLock:
    """The lock of a run folder, held from ``acquire`` to ``release``."""

    def __init__(self, folder: Path) -> None:
        self._lock = FileLock(folder / LOCK_FILE, timeout=_WAIT)
        self._folder = folder
        self._over = threading.Event()

    @property
    def is_locked(self) -> bool:
        return bool(self._lock.is_locked)

    def acquire(self) -> RunLock:
        """Take the lock.

        Raises:
            RunError: another process holds it; it is named.
            OutputError: the disk refuses.
        """
        try:
            self._lock.acquire()
        except Timeout:
            raise _taken(self._folder, read_owner(self._folder)) from None
        except OSError as error:
            raise output_error(self._folder / LOCK_FILE, error) from error
        try:
            before = read_owner(self._folder)
            if before and before.is_alive(heartbeat_age(self._folder)):
                raise _taken(self._folder, before)
            owner = Owner(socket.gethostname(), os.getpid(), psutil.Process().create_time(), _now())
            write_bytes(self._folder / OWNER_FILE, json_text(asdict(owner)).encode(), durable=False)
        except BaseException:
            self._lock.release()
            raise
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def release(self) -> None:
        """Give the lock back."""
        if self._lock.is_locked:
            self._over.set()
            with suppress(OSError):
                (self._folder / OWNER_FILE).unlink(missing_ok=True)
            self._lock.release()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(self._folder / OWNER_FILE)


def read_owner(folder: Path) -> Owner | None:
    """Return who holds the run or held it when it died, or None where nobody is named."""
    try:
        record = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return Owner(str(record["host"]), int(record["pid"]), float(record["born"]), str(record["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def heartbeat_age(folder: Path) -> float:
    """Return the seconds since the owner's last sign of life; infinite where there is none."""
    try:
        return max(0.0, time.time() - (folder / OWNER_FILE).stat().st_mtime)
    except OSError:
        return float("inf")


def is_held(folder: Path) -> bool:
    """Return whether a process holds the run now: by its lock, and where that tells nothing by its signs of life."""
    if (folder / LOCK_FILE).exists():
        try:
            with FileLock(folder / LOCK_FILE, timeout=0):
                pass
        except Timeout:
            return True
        except OSError:
            pass  # a folder that may only be read
    owner = read_owner(folder)
    return owner is not None and owner.is_alive(heartbeat_age(folder))


def _taken(folder: Path, owner: Owner | None) -> RunError:
    return RunError(
        f"Another process is using this run folder{f': {owner}' if owner else ''}.",
        where=str(folder),
        fix=f"Wait for it, stop it with lorasmith stop {folder}, or choose another folder.",
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
