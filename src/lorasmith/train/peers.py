"""Coming together with the other processes of a training, and parting from them.

A process that ends leaves a word in the launcher's store, so that the others can say why they end, too. Nobody waits
longer than ``TIMEOUT`` for another; one that dies is noticed at once, since its connections close.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any

from lorasmith.errors import LorasmithError, RunError

TIMEOUT = timedelta(minutes=30)  # that a process waits for the others: they may be compiling, or reading a slow disk
_PATIENCE = 3.0  # seconds in which whoever ends has said why
_SAME = 1.0  # seconds in which the first says what is wrong for all
_GOODBYE = 10.0  # seconds that the others give the first to finish what it says when all are stopped
_HANGING = 15  # seconds after which a process that has failed is ended if the GPUs' connections hold it up


class LostError(RunError):
    """Another process of the training has ended. ``told``: it has said itself why, on the same machine."""

    told = False


class Peers:
    """The processes that train together, as one of them sees the others.

    Attributes:
        nccl: gradients between GPUs go over NCCL.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.nccl = self._ending = False
        self._store: Any = None
        self._processes: list[tuple[str, int]] = []  # host and pid of each

    def join(self) -> None:
        """Meet the others.

        Raises:
            RunError: they are not all there in time.
        """
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it tells of each connection that closes
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, self._on_sigterm)
        self.nccl = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            store, rank, world = next(iter(rendezvous("env://", timeout=TIMEOUT)))
            self._store = PrefixStore("lorasmith", store)
            backend = "cpu:gloo,cuda:nccl" if self.nccl else "gloo"
            dist.init_process_group(backend, store=self._store, rank=rank, world_size=world, timeout=TIMEOUT)
            self._store.set(f"peer/{self.rank}", json.dumps([socket.gethostname(), os.getpid()]))
            self._processes = [tuple(json.loads(self._store.get(f"peer/{rank}"))) for rank in range(world)]
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"The {self.world} processes do not reach each other: {_line(error)}",
                where=f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}",
                fix="Start all with the same --rdzv-endpoint (or MASTER_ADDR and MASTER_PORT), and look at firewalls.",
            ) from error

    def leave(self, error: BaseException | None = None) -> None:
        """Part from the others, with a word for them if it is because of ``error``. Does not wait for who hangs.

        Without an error all have come to the end.
        """
        import torch.distributed as dist

        self._ending = True
        if error is None:
            dist.destroy_process_group()
            return
        with suppress(Exception):  # the store may be gone, too
            stopped = isinstance(error, KeyboardInterrupt)
            word = {"stopped": getattr(error, "code", 130)} if stopped else {"error": _line(error)}
            self._store.set(f"left/{self.rank}", json.dumps(word))
        if isinstance(error, KeyboardInterrupt) and self.rank and self._store is not None:
            deadline = time.monotonic() + _GOODBYE
            while time.monotonic() < deadline and not self._word(0):
                time.sleep(0.05)
        if self.nccl and hasattr(signal, "alarm"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_HANGING)

    def require_all(self) -> None:
        """Raise LostError if another process has died, or has ended with an error."""
        for rank in range(self.world):
            lost = None if rank == self.rank else self._lost(rank)
            if lost:
                raise lost

    def says_the_first(self, error: BaseException) -> bool:
        """Return whether the first ends with the same error, as where all find the same fault in the recipe."""
        deadline = time.monotonic() + _SAME
        while self._store is not None and time.monotonic() < deadline:
            if word := self._word(0):
                return word.get("error") == _line(error)
            time.sleep(0.05)
        return False

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Stop, unless this process is about to end: the launcher shall not cut off what it has to say."""
        from lorasmith.train.interrupt import Stopped

        if not self._ending:
            raise Stopped(number)

    @contextmanager
    def speaking(self) -> Iterator[Any]:
        """Turn what torch raises when another process is gone into LostError, which says what has become of it.

        Raises:
            Stopped: the other was told to stop while nothing was held, so that this one follows.
        """
        import torch.distributed as dist

        try:
            yield dist
        except RuntimeError as error:
            if type(error).__name__ == "OutOfMemoryError":
                raise
            raise self._reason(error) from error

    def _reason(self, error: Exception) -> BaseException:
        """Return what to raise; waits a little for what the others leave behind."""
        from lorasmith.train.interrupt import Stopped

        self._ending = True
        others = [rank for rank in range(self.world) if rank != self.rank]
        deadline = time.monotonic() + _PATIENCE
        while True:
            for rank in others:
                if lost := self._lost(rank):
                    return lost
            for rank in others:
                if code := self._word(rank).get("stopped"):
                    return Stopped.of_code(int(code))
            if time.monotonic() > deadline:
                return LostError(f"Another process has ended or cannot be reached: {_line(error)}")
            time.sleep(0.05)

    def _lost(self, rank: int) -> LostError | None:
        """Return what to say of a process that has died or failed, None of others."""
        word, (host, pid) = self._word(rank), self._processes[rank]
        who = f"Process {rank} of {self.world} (pid {pid} on {host})"
        if word and "error" in word:
            lost = LostError(f"{who} has ended: {word['error']}")
            lost.told = host == socket.gethostname()
            return lost
        if not word and host == socket.gethostname() and _is_dead(pid):
            return LostError(f"{who} has died without a word: killed, or out of memory.")
        if word and "silence" in word and rank == 0:
            return LostError(f"{who} has ended, or was killed.")
        return None

    def _word(self, rank: int) -> dict[str, Any]:
        """Return what a process has left behind; nothing while it works."""
        try:
            if not self._store.check([f"left/{rank}"]):
                return {}
            word: dict[str, Any] = json.loads(self._store.get(f"left/{rank}"))
            return word
        except Exception:  # torch raises what it likes
            return {"silence": "the store has ended with the process that kept it"}


def _is_dead(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _line(error: BaseException) -> str:
    text = error.what if isinstance(error, LorasmithError) else f"{type(error).__name__}: {error}"
    return text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
