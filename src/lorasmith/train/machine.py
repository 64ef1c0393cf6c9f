"""What the device has to offer: memory that is free, and how fast it computes, measured in less than a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lorasmith.model.stable_diffusion import computes_slowly

_SECONDS = 0.06  # each rate is measured for at least so long, after one call that is not counted
_WEIGHT_FILES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
_CONTROL_GROUPS = (  # limit, use, statistics, and the name there of what the system can take back
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


@dataclass(frozen=True)
class Machine:
    """A device as it is now.

    Attributes:
        held: bytes that this process holds there: the tensors on a GPU; on a CPU the process's memory, with the
            weights that lie in mapped files and have not been read yet.
        free: bytes that it can take besides.
        flops: floating-point operations a second of a large matrix product in the training's number format.
        flops_fp32: the same in float32.
        bandwidth: bytes a second that a sum of two large tensors reads and writes.
        overhead: seconds that the smallest operation takes.
    """

    held: int
    free: int
    flops: float
    flops_fp32: float
    bandwidth: float
    overhead: float

    @property
    def room(self) -> int:
        """Bytes that there are for this process, with what it holds."""
        return self.held + self.free


def look_at(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure the device. Takes about 0.3 s, and up to 50 MB (a GPU: 200 MB) for as long."""
    held, free = _memory(device)
    return Machine(held, free, *_rates(device, dtype))


def memory_alone(device: torch.device) -> Machine:
    """Return the device with its memory alone looked at, which takes none; its rates are 1."""
    return Machine(*_memory(device), 1.0, 1.0, 1.0, 1.0)


def _memory(device: torch.device) -> tuple[int, int]:
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        return held, torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    return psutil.Process().memory_info().rss + _unread_weights(), min(psutil.virtual_memory().available, _allowed())


def _unread_weights() -> int:
    """Return the bytes of mapped weight files that are not in memory yet, where the system tells (Linux)."""
    with suppress(AttributeError, OSError, psutil.Error):
        maps = psutil.Process().memory_maps()
        return sum(m.size - m.rss for m in maps if Path(m.path).suffix in _WEIGHT_FILES)
    return 0


def _allowed(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes that a container's limit leaves; infinite where there is none."""
    for limit, use, statistics, name in _CONTROL_GROUPS:
        with suppress(OSError, ValueError, KeyError):
            figures = dict(line.split() for line in (root / statistics).read_text().splitlines())
            return int((root / limit).read_text()) - int((root / use).read_text()) + int(figures[name])
    return float("inf")


def _rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float, float, float]:
    gpu = device.type != "cpu"
    side, count = (4096, 2**24) if gpu else (1024, 2**22)
    a, b, c = torch.randn(3, side, side, device=device)
    product_fp32 = _seconds(lambda: torch.mm(a, b, out=c), device)
    shorter = 8 if computes_slowly(device, dtype) else 1  # where a product of that size would take many seconds
    a, b, c = (x[: side // shorter, : side // shorter].to(dtype) for x in (a, b, c))
    product = shorter**3 * _seconds(lambda: torch.mm(a, b, out=c), device) if dtype != torch.float32 else product_fp32
    x, y = torch.ones(2, count, device=device)
    total = _seconds(lambda: torch.add(x, 1.0, out=y), device)
    small = torch.ones(16, device=device)
    least = _seconds(lambda: [torch.add(small, 1.0) for _ in range(100)], device) / 100
    return 2 * side**3 / product, 2 * side**3 / product_fp32, 2 * 4 * count / total, least


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call of ``work``, on a device that does nothing else."""

    def wait() -> None:
        if device.type in ("cuda", "mps"):
            getattr(torch, device.type).synchronize()

    work()
    wait()
    calls, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < _SECONDS or calls == 0:
        for _ in range(max(1, calls)):  # twice as many each time, so that waiting costs nothing
            work()
        calls += max(1, calls)
        wait()
    return passed / calls
