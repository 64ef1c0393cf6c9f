"""Measure lorasmith's way and the reference way, and set them side by side.

The two take turns of a few steps, so that what else the machine does, and how warm it is, meets both alike. Only where
the memory does not suffice for both at once, and for pictures, which are drawn as one batch, one comes after the other.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from lorasmith.bench.child import Way
from lorasmith.bench.job import UNITS, Job, Measured
from lorasmith.errors import LorasmithError
from lorasmith.events import Event, Note, Warned

_COUNTED = (
    "Counted: matrix products, convolutions and attention of the UNet with its LoRA, a multiply-add as two; "
    "for training the forward pass and the backward pass without gradients of frozen weights; for pictures also the "
    "VAE's decoder. Attention counts five products backwards, as the fused kernels do it. Gradient checkpointing and "
    "encoding at every step do not count. The matrix product is the best of a few shapes in the same process and "
    "number format, measured after every turn; the median of these."
)
T = TypeVar("T")
_SHARES = 5  # turns of each way, where the steps are many enough
_LEAST_ROUNDS = 2
_TURN_SECONDS = 2.0  # of the slower way; shorter turns would measure the change from one to the other


@dataclass(frozen=True)
class Comparison:
    """Both ways' figures; ``reference`` is None where it was not asked for or failed.

    ``job`` has the steps that were taken; ``turn`` is how many of them were taken at once, 0 where one way came after
    the other.
    """

    job: Job
    machine: str
    day: str
    ours: Measured
    reference: Measured | None
    turn: int = 0

    @property
    def faster(self) -> float | None:
        """How many times as fast lorasmith is."""
        return self.ours.rate / self.reference.rate if self.reference else None

    @property
    def memory(self) -> float | None:
        """lorasmith's peak memory over the reference's."""
        return self.ours.peak_mib / self.reference.peak_mib if self.reference else None

    def to_json(self) -> dict[str, Any]:
        """Return every figure."""
        verb = self.job.verb
        ways = [way.to_json(verb) for way in (self.ours, self.reference) if way]
        ratios = {"speed": self.faster, "peak_memory": self.memory}
        counted = _COUNTED if self.ours.flops else ""
        return {
            "date": self.day,
            "machine": self.machine,
            "job": asdict(self.job),
            "steps_in_a_turn": self.turn,
            "command": self.command(),
            "ways": ways,
            "ratios": ratios,
            "counted": counted,
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return the table: what, lorasmith's, the reference's, their ratio."""
        ours, other = self.ours, self.reference
        rows = [(f"{UNITS[self.job.verb]}/s", *self._cells(lambda way: way.rate, "{:.3g}"))]
        if ours.flops:
            rows.append(("TFLOP/s of useful work", *self._cells(lambda way: way.rate * way.flops / 1e12, "{:.3g}")))
            rows.append(("TFLOP/s of a matrix product", *self._cells(lambda way: way.matrix_rate / 1e12, "{:.3g}")))
            shares = f"{ours.share:.0%}", f"{other.share:.0%}" if other else ""
            rows.append(("share of the matrix product", *shares, ""))
            rows.append((f"TFLOP per {UNITS[self.job.verb][:-1]}", f"{ours.flops / 1e12:.4g}", "", ""))
        rows.append(("peak memory, MiB", *self._cells(lambda way: way.peak_mib, "{:,.0f}")))
        rows.append(("number format of the base", ours.precision, other.precision if other else "", ""))
        return rows

    def _cells(self, figure: Callable[[Measured], float], form: str) -> tuple[str, str, str]:
        ours = figure(self.ours)
        if not self.reference:
            return form.format(ours), "", ""
        other = figure(self.reference)
        return form.format(ours), form.format(other), f"{ours / other:.2f}"

    def markdown(self) -> str:
        """Return the table as a page."""
        head = ["| | lorasmith | reference | ratio |", "|---|---|---|---|"]
        rows = [f"| {' | '.join(row)} |" for row in self.rows()]
        lines = [
            f"# lorasmith bench {self.job.verb}, {self.day}",
            "",
            f"{self.words()} {self.machine}.",
            "",
            *head,
            *rows,
        ]
        lines += ["", _COUNTED] if self.ours.flops else []
        lines += ["", f"Each way ran in a process of its own, whose peak memory is given. {self._order()}".strip()]
        return "\n".join([*lines, "", f"    {self.command()}"]) + "\n"

    def command(self) -> str:
        """Return the command that measures the same again."""
        job = self.job
        words = ["lorasmith", "bench", job.verb, "--base", job.base, *(["--size", str(job.size)] if job.size else [])]
        if job.verb != "load":
            words += ["--batch", str(job.batch), "--rank", str(job.rank)]
        words += ["--steps", str(job.steps), "--device", job.device, "--precision", job.precision]
        return " ".join([*map(quote, words), *([] if self.reference else ["--no-reference"])])

    def _order(self) -> str:
        if not self.reference:
            return ""
        if not self.turn:
            return "One came after the other."
        return f"They took turns of {self.turn} {'step' if self.turn == 1 else 'steps'}."

    def words(self) -> str:
        """Return what was measured, as a sentence."""
        job = self.job
        size = f"{job.size} px" if job.size else "the base's own size"
        if job.verb == "load":
            return f"Base {job.base}, loaded {job.steps} times, on {self.ours.device}."
        work = f"{job.steps} steps of {job.batch}" if job.verb == "train" else f"{job.batch} in {job.steps} steps each"
        return f"Base {job.base}, {size}, {work}, rank {job.rank}, on {self.ours.device}."


def bench(job: Job, *, reference: bool = True, seconds: float | None = None) -> Generator[Event, None, Comparison]:
    """Measure, each way in a process of its own. Where the reference way fails, that is warned about.

    Args:
        seconds: for the steps of both ways together, loading and warming up aside; where ``job.steps`` would take
            longer, fewer are taken, at least two turns each.

    Raises:
        LorasmithError: lorasmith's way cannot be measured.
    """
    other, turn = None, 0
    with closing(Way("ours", job)) as way:
        ready = yield from way.prepare()
        in_turn = reference and job.verb != "generate"  # a batch of pictures is one piece of work
        if in_turn and ready.free_mib < ready.peak_mib:
            yield Note("One way is measured after the other, as there is not enough memory for both at once.")
            in_turn = False
        if in_turn:
            job, turn, ours, other = yield from _in_turn(way, ready.seconds, job, seconds)
        else:
            share = seconds / 4 if seconds and reference else seconds  # the reference way is the slower one
            job = yield from _rounds([way], job, _turn(job, ready.seconds), share)
            ours = yield from way.finish()
    if reference and not in_turn:
        other = yield from _if_possible(_alone(job))
    return Comparison(job, describe_machine(ours.device), date.today().isoformat(), ours, other, turn)


def _in_turn(
    ours: Way, step: float, job: Job, seconds: float | None
) -> Generator[Event, None, tuple[Job, int, Measured, Measured | None]]:
    """Return the job as done, the steps in a turn, and what was measured; ``step`` is what one takes our way."""
    with closing(Way("reference", job)) as other:
        ready = yield from _if_possible(other.prepare())
        ways = [ours, other] if ready else [ours]
        turn = _turn(job, max(step, ready.seconds if ready else 0.0))
        job = yield from _rounds(ways, job, turn, seconds)
        measured = yield from ours.finish()
        found = (yield from _if_possible(other.finish())) if other in ways else None
    return job, turn if found else 0, measured, found


def _alone(job: Job) -> Generator[Event, None, Measured]:
    with closing(Way("reference", job)) as way:
        yield from way.prepare()
        yield from way.work(_steps(job))
        return (yield from way.finish())


def _rounds(ways: list[Way], job: Job, turn: int, seconds: float | None) -> Generator[Event, None, Job]:
    """Let each of ``ways`` take its turn until all has been done or the time is over; return the job as done.

    A reference way that fails is warned about and taken out of ``ways``.
    """
    done, rounds, begun = 0, 0, time.perf_counter()
    while done < _steps(job):
        spent = time.perf_counter() - begun
        if seconds is not None and rounds >= _LEAST_ROUNDS and spent + spent / rounds > seconds:
            return replace(job, steps=done)
        count = min(turn, _steps(job) - done)
        for way in tuple(ways):
            try:
                yield from way.work(count)
            except LorasmithError as error:
                if way.name == "ours":
                    raise
                ways.remove(way)
                yield _not_measured(error)
        done, rounds = done + count, rounds + 1
    return job


def _steps(job: Job) -> int:
    """Return how many pieces the work has: a batch of pictures is drawn in one."""
    return 1 if job.verb == "generate" else job.steps


def _turn(job: Job, seconds: float) -> int:
    """Return how many steps to take in one turn, where each takes so many seconds."""
    return max(1, min(_steps(job) // _SHARES, round(_TURN_SECONDS / max(seconds, 1e-9))))


def _if_possible(work: Generator[Event, None, T]) -> Generator[Event, None, T | None]:
    """Return what the reference way's ``work`` returns, or None, having warned."""
    try:
        return (yield from work)
    except LorasmithError as error:
        yield _not_measured(error)
        return None


def _not_measured(error: LorasmithError) -> Warned:
    return Warned(f"The reference way could not be measured. {error}")


def describe_machine(device: str) -> str:
    """Return the hardware and the versions that figures depend on."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    packages = ", ".join(f"{package} {version(package)}" for package in ("lorasmith", "torch", "diffusers", "peft"))
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count != 1)}"
    kind = "GPU" if device.startswith("cuda") else f"CPU, {threads}"
    return f"{name} ({kind}), {platform.system()}, Python {platform.python_version()}, {packages}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
