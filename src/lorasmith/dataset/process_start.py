"""How processes that look at pictures are started; light, so that they can be on their way before all else.

On Linux they are forked from a server that has imported what they need, so that it is imported once, and while this
process imports its own. Elsewhere each process imports for itself; macOS's own libraries do not bear a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import BaseContext
from pathlib import Path

MANY = 48  # pictures from which on processes gain more than starting them takes
_begun = False
_IMPORTED = "lorasmith.dataset.lookers"
# Read when a process starts: numpy's matrix products shall not want the other processes' cores, and glibc shall not
# give memory back after each step of a picture, to have it filled with zeros again for the next.
_SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
}


def context() -> BaseContext:
    """Return how to start processes. A plain fork would copy other threads' locks, as they stand.

    Raises:
        OSError: there are no semaphores, as in some containers.
    """
    if sys.platform == "linux":
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload([_IMPORTED])
        return server
    return multiprocessing.get_context("spawn")


def begin(sources: Sequence[Path]) -> None:
    """Start the server without waiting for it, if there is one, a second core for it, and much to look at."""
    global _begun
    if not _begun and cores() > 1 and _hold_many(sources) and context().get_start_method() == "forkserver":
        from multiprocessing import forkserver, resource_tracker

        with suppress(OSError):  # it is only slower without
            resource_tracker.ensure_running()  # first, for when it starts it lets Ctrl-C through again
            with ready():
                forkserver.ensure_running()
            _begun = True


def has_begun() -> bool:
    """Return whether processes are quickly there, because ``begin`` started the server."""
    return _begun


def _hold_many(sources: Sequence[Path]) -> bool:
    """Return whether folders hold so many files that processes may be wanted; an archive is taken to."""
    found = 0
    for source in sources:
        if source.suffix.lower() == ".zip":
            return True
        for _, _, files in os.walk(source):
            found += len(files)
            if found >= MANY:
                return True
    return False


@contextmanager
def ready() -> Iterator[None]:
    """Within this processes may be started: they get their settings, and Ctrl-C is for this process alone."""
    added = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        with _deaf():
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _deaf() -> Iterator[None]:
    """Hold Ctrl-C back while processes may be started: they inherit it, so that one does not end with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
