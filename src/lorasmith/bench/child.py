"""A way in a process of its own, so that its memory, its caches and its settings are nobody else's."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Generator
from multiprocessing import get_context
from multiprocessing.connection import Connection

from lorasmith.bench.job import Job, Measured
from lorasmith.errors import DeviceError, LorasmithError, RunError
from lorasmith.events import Event, Progress

_UNITS = {"train": "steps", "generate": "evaluations", "load": "times"}


def measure_in_child(way: str, job: Job) -> Generator[Event, None, Measured]:
    """Return what ``way`` ("ours" or "reference") measures in a fresh process; when the caller stops, it is ended.

    Raises:
        LorasmithError: what the way raises; RunError where it fails otherwise.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(way, job, sender), daemon=True)
    stage, unit = f"{job.verb}, {'lorasmith' if way == 'ours' else way}", _UNITS[job.verb]
    try:
        process.start()
        sender.close()
        yield Progress(stage, 0, job.steps, unit)
        while True:
            try:
                message = receiver.recv()
            except EOFError:
                process.join()
                raise RunError(
                    f"The process that measured ended with code {process.exitcode}.",
                    where=stage,
                    fix="Choose a smaller size or batch if memory ran out, or another device.",
                ) from None
            if isinstance(message, Measured):
                return message
            if isinstance(message, LorasmithError):
                raise message
            done, total = message
            yield Progress(stage, done, total, unit)
    finally:
        if process.is_alive():
            process.terminate()
            process.join()


def _work(way: str, job: Job, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        import torch

        from lorasmith.bench import ours, reference

        try:
            work = getattr(ours if way == "ours" else reference, job.verb)
            sender.send(work(job, lambda done, total: sender.send((done, total))))
        except torch.OutOfMemoryError as error:
            fix = "Choose a smaller --size or --batch."
            raise DeviceError("The GPU's memory is not enough.", where=str(error).splitlines()[0], fix=fix) from error
    except LorasmithError as error:
        sender.send(error)
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{trace.filename}:{trace.lineno}"
        what = f"{way} failed: {type(error).__name__}: {error}"
        sender.send(RunError(what, where=where, fix="Report it with the command that was run."))
