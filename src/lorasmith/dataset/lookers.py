"""Look at many pictures side by side, in order, few at a time in memory.

Few pictures are looked at by threads. Many are looked at by processes: half of the work is many short calls, for which
threads wait for each other. Where no process can be started, or one dies, threads do the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path

import cv2

from lorasmith.dataset import look as looking
from lorasmith.dataset import process_start
from lorasmith.dataset.finding import Finding, finding
from lorasmith.dataset.picture import PictureError
from lorasmith.dataset.seen import Seen, see

_FEW = 16  # pictures that are not in the cache, up to which no process is started, however many there are in all
_PROCESSES = 3  # at most; each takes some 90 MB
_AHEAD = 4  # pictures in work or waiting, for each worker

Answer = Seen | Finding


def seen_or_why_not(path: Path) -> Answer:
    """Return what is seen of a picture, or why it cannot be used."""
    try:
        return see(path)
    except PictureError as error:
        return finding(error.code, error.what, path)


def answers(
    paths: Sequence[Path], workers: int | None, known: Callable[[Path], Seen | None], *, processes: bool = False
) -> Iterator[tuple[Answer, bool]]:
    """Yield for each picture, in order, what is seen of it or why it cannot be used, and whether that is new.

    Args:
        paths: the pictures.
        workers: how many look at the same time; None for as many as there are cores.
        known: returns what was seen of a picture before; asked when its turn comes near.
        processes: whether processes may be started, each of which imports the program's main module.
    """
    workers = workers or process_start.cores()
    todo, waiting = iter(paths), deque[tuple[Path, Seen | Future[Answer]]]()
    with _Pool(workers, processes=processes and workers > 1 and len(paths) >= process_start.MANY) as pool:
        while True:
            for path in islice(todo, _AHEAD * workers - len(waiting)):
                waiting.append((path, known(path) or pool.submit(path)))
            if not waiting:
                return
            path, work = waiting.popleft()
            yield (work, False) if isinstance(work, Seen) else (pool.result(path, work), True)


class _Pool:
    """Threads, and processes from when there turns out to be much to do."""

    def __init__(self, workers: int, *, processes: bool) -> None:
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="look")
        self._processes: Executor | None = None
        self._reserve = _processes(min(workers, _PROCESSES)) if processes else None
        self._asked = 0

    def submit(self, path: Path) -> Future[Answer]:
        """Have a picture looked at."""
        self._asked += 1
        enough = self._asked > _FEW or process_start.has_begun()
        if enough and self._reserve is not None:  # a set that is in the cache asks for none
            self._processes, self._reserve = self._reserve, None
        if self._processes is not None:
            try:
                with process_start.ready():
                    return self._processes.submit(seen_or_why_not, path)
            except (BrokenProcessPool, OSError, RuntimeError):
                self._processes = None
        return self._threads.submit(seen_or_why_not, path)

    def result(self, path: Path, work: Future[Answer]) -> Answer:
        """Wait for what was submitted."""
        try:
            return work.result()
        except BrokenProcessPool:
            self._processes = None
            return seen_or_why_not(path)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._threads, self._processes, self._reserve):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)


def _processes(count: int) -> Executor | None:
    """Return processes that look at pictures, none of them started yet, or None where this system cannot have them."""
    try:
        context = process_start.context()
        room = looking.Room(looking.ROOM, context)
    except (ImportError, NotImplementedError, OSError):  # no semaphores, as in some containers
        return None
    looking.share_room(room)
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(room,))


def _begin(room: looking.Room) -> None:
    """Set up a process: one thread of OpenCV, a share in the room, deaf to Ctrl-C, and ending with its parent."""
    cv2.setNumThreads(1)
    looking.share_room(room)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
