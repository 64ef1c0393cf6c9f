"""Measure lorasmith's way and the reference way one after the other, and set them side by side."""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorasmith.bench.child import measure_in_child
from lorasmith.bench.job import UNITS, Job, Measured
from lorasmith.errors import LorasmithError
from lorasmith.events import Event, Warned

_COUNTED = (
    "Counted: matrix products, convolutions and attention of the UNet with its LoRA, a multiply-add as two; "
    "for training the forward pass and the backward pass without gradients of frozen weights; for pictures also the "
    "VAE's decoder. Attention counts five products backwards, as the fused kernels do it. Gradient checkpointing and "
    "encoding at every step do not count. The matrix product is the best of a few shapes in the same process and "
    "number format."
)


@dataclass(frozen=True)
class Comparison:
    """Both ways' figures; ``reference`` is None where it was not asked for or failed."""

    job: Job
    machine: str
    day: str
    ours: Measured
    reference: Measured | None

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
        return "\n".join([*lines, *(["", _COUNTED] if self.ours.flops else [])]) + "\n"

    def words(self) -> str:
        """Return what was measured, as a sentence."""
        job = self.job
        size = f"{job.size} px" if job.size else "the base's own size"
        if job.verb == "load":
            return f"Base {job.base}, loaded {job.steps} times, on {self.ours.device}."
        work = f"{job.steps} steps of {job.batch}" if job.verb == "train" else f"{job.batch} in {job.steps} steps each"
        return f"Base {job.base}, {size}, {work}, rank {job.rank}, on {self.ours.device}."


def bench(job: Job, *, reference: bool = True) -> Generator[Event, None, Comparison]:
    """Measure, each way in a process of its own. Where the reference way fails, that is warned about.

    Raises:
        LorasmithError: lorasmith's way cannot be measured.
    """
    ours = yield from measure_in_child("ours", job)
    other = None
    if reference:
        try:
            other = yield from measure_in_child("reference", job)
        except LorasmithError as error:
            yield Warned(f"The reference way could not be measured. {error}")
    return Comparison(job, describe_machine(ours.device), date.today().isoformat(), ours, other)


def describe_machine(device: str) -> str:
    """Return the hardware and the versions that figures depend on."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers", "peft"))
    return f"{name}, {torch.get_num_threads()} threads, {platform.system()}, {packages}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
