"""Asking a training that runs in another process for something: files in the run folder's requests/."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from lorasmith.files import new_folder, write_bytes

REQUESTS = ("stop", "save", "sample")
FOLDER = "requests"
_EVERY = 0.5  # seconds between two looks


def ask(run: Path, what: str) -> Path:
    """Ask the process that trains in ``run`` for one of ``REQUESTS``; return the file, which it removes when it has.

    Raises:
        OutputError: the folder cannot be written.
    """
    if what not in REQUESTS:
        raise ValueError(what)
    path = new_folder(run / FOLDER) / what
    write_bytes(path, b"", durable=False)
    return path


class Requests:
    """What others ask of this training. What was asked before it began is forgotten."""

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER
        self._waiting: set[str] = set()
        self._looked = 0.0
        for name in REQUESTS:
            self.done(name)

    def pending(self) -> set[str]:
        """Return what is asked for and not done yet. The disk is looked at twice a second at most."""
        now = time.monotonic()
        if now - self._looked >= _EVERY:
            self._looked = now
            self._waiting = {name for name in REQUESTS if (self._folder / name).exists()}
        return self._waiting

    def done(self, name: str) -> None:
        """Say that ``name`` is done, so that who asked can stop waiting."""
        self._waiting = self._waiting - {name}
        with suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)
