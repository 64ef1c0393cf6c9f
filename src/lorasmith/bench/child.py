"""A way in a process of its own, so that its memory, its caches and its settings are nobody else's."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Generator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Literal, TypeVar

from lorasmith.bench.job import Job, Measured, Ready
from lorasmith.errors import DeviceError, LorasmithError, RunError
from lorasmith.events import Event, Progress

_UNITS = {"train": "steps", "generate": "evaluations", "load": "times"}
Name = Literal["ours", "reference"]
T = TypeVar("T")


class Way:
    """One way, in a fresh process that works only when it is told to. Close it in any case, which ends the process.

    Its generators yield progress, and raise what the way raises: a LorasmithError; RunError where it fails otherwise.
    """

    def __init__(self, name: Name, job: Job) -> None:
        context = get_context("spawn")
        self.name: Name = name
        self._stage, self._unit = f"{job.verb}, {'lorasmith' if name == 'ours' else name}", _UNITS[job.verb]
        self._total = job.steps
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(name, job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def prepare(self) -> Generator[Event, None, Ready]:
        """Wait until the way has loaded and warmed up; return what it has seen of itself so far."""
        yield Progress(self._stage, 0, self._total, self._unit)
        return (yield from self._answer(Ready))

    def work(self, steps: int) -> Generator[Event, None, None]:
        """Let it take so many steps."""
        yield from self._ask(steps, float)

    def finish(self) -> Generator[Event, None, Measured]:
        """Return what it has measured over all its steps."""
        return (yield from self._ask(0, Measured))

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process.is_alive():
            self._process.terminate()
        self._process.join()
        self._connection.close()

    def _ask(self, steps: int, kind: type[T]) -> Generator[Event, None, T]:
        try:
            self._connection.send(steps)
        except OSError:
            raise self._ended() from None
        return (yield from self._answer(kind))

    def _answer(self, kind: type[T]) -> Generator[Event, None, T]:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                raise self._ended() from None
            if isinstance(message, kind):
                return message
            if isinstance(message, LorasmithError):
                raise message
            done, total = message
            yield Progress(self._stage, done, total, self._unit)

    def _ended(self) -> RunError:
        self._process.join()
        return RunError(
            f"The process that measured ended with code {self._process.exitcode}.",
            where=self._stage,
            fix="Choose a smaller size or batch if memory ran out, or another device.",
        )


class _Pipe:
    """What a way asks and tells its parent; see ``measure.Turns``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ready(self, ready: Ready) -> None:
        self._connection.send(ready)

    def take(self) -> int:
        return int(self._connection.recv())

    def taken(self, seconds: float) -> None:
        self._connection.send(seconds)

    def tell(self, done: int, total: int) -> None:
        self._connection.send((done, total))


def _work(way: Name, job: Job, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        import torch

        from lorasmith.bench import ours, reference

        try:
            work = getattr(ours if way == "ours" else reference, job.verb)
            connection.send(work(job, _Pipe(connection)))
        except torch.OutOfMemoryError as error:
            fix = "Choose a smaller --size or --batch."
            raise DeviceError("The GPU's memory is not enough.", where=str(error).splitlines()[0], fix=fix) from error
    except LorasmithError as error:
        connection.send(error)
    except (EOFError, BrokenPipeError):
        pass  # the parent has gone
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{trace.filename}:{trace.lineno}"
        what = f"{way} failed: {type(error).__name__}: {error}"
        connection.send(RunError(what, where=where, fix="Report it with the command that was run."))
