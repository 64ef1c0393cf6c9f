"""Clocks, peaks and counts that both ways share."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Protocol

import psutil
import torch

from lorasmith.bench.job import Job, Ready
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.train.costs import Costs

_SHAPES = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 1280, 1280), (8192, 8192, 8192))
_MATRIX_SECONDS = 1.0


class Turns(Protocol):
    """When a way may work, and whom it tells. The parent's clock runs for nobody who waits."""

    def ready(self, ready: Ready) -> None:
        """Say that the warm-up is over."""

    def take(self) -> int:
        """Wait for the next turn; return how many steps to take in it, 0 when there are no more."""

    def taken(self, seconds: float) -> None:
        """Say that the turn is over."""

    def tell(self, done: int, total: int) -> None:
        """Say how far the work is."""


def timed(
    turns: Turns,
    device: torch.device,
    step: Callable[[int], None],
    warm_up: Callable[[], object],
    times: int = 1,
    yardstick: Callable[[], float] | None = None,
) -> tuple[int, float, float]:
    """Warm up ``times`` times, then take steps turn by turn.

    Args:
        step: takes the step of a number, from 0 on, and tells.
        yardstick: a rate that is measured after every turn, since a machine's speed changes within minutes.

    Returns:
        the number of steps, the seconds they took in all, and the yardstick's median, 0 without one.
    """
    for _ in range(times):
        begun = clock(device)
        warm_up()
        seconds = clock(device) - begun
    turns.ready(Ready(seconds, peak_mib(device), _free_mib(device)))
    done, total, rates = 0, 0.0, list[float]()
    while count := turns.take():
        begun = clock(device)
        for _ in range(count):
            step(done)
            done += 1
        seconds = clock(device) - begun
        total += seconds
        if yardstick:
            rates.append(yardstick())
        turns.taken(seconds)
    return done, total, statistics.median(rates) if rates else 0.0


def _free_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0]) / 2**20
    return float(psutil.virtual_memory().available) / 2**20


def clock(device: torch.device) -> float:
    """Return the time in seconds, once the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = _MATRIX_SECONDS) -> float:
    """Return the operations a second of the fastest of a few matrix products, each kept up for a while.

    Shapes whose turn would not fit into ``seconds``, reckoned from the smaller ones, are left out.
    """
    best, begun = 0.0, clock(device)
    for m, k, n in _SHAPES:
        operations = 2.0 * m * k * n
        if best and clock(device) - begun + 3 * operations / best > seconds:
            continue
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
        torch.mm(a, b)
        turn, count = clock(device), 0
        while (spent := clock(device) - turn) < seconds / len(_SHAPES):
            torch.mm(a, b)
            count += 1
        best = max(best, count * operations / spent)
    return best


def peak_mib(device: torch.device) -> float:
    """Return the peak memory so far: allocated on a GPU, resident in main memory otherwise, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def flops(sd: StableDiffusion, job: Job, size: int) -> float:
    """Return the useful floating-point operations of one sample or picture, found without computing anything.

    Counted are matrix products, convolutions and attention, a multiply-add as two, in the UNet with its LoRA: of a
    training sample the forward pass and the backward pass without gradients of frozen weights; of a picture every
    step, with guidance, and the VAE's decoder. Attention's backward pass counts five products, as the fused kernels
    do it. So SD v1.5 at 512 px has 0.80 TFLOP a forward pass and 1.78 a training sample. Gradient checkpointing, the
    VAE's encoder and the text encoder do not count, whoever runs them.

    Args:
        sd: the base without an adapter.
    """
    settings = {"lora": {"rank": job.rank}, "train": {"batch": 1, "precision": "fp32", "device": "cpu"}}
    costs = Costs(sd, Recipe.model_validate(settings), size)
    if job.verb == "train":
        return costs.step.flops
    return costs.drawing(1).flops * job.steps + costs.decoding.flops


def warm_up(job: Job) -> int:
    """Return how many steps are left out of the measurement before ``job.steps`` of them."""
    return max(1, job.steps // 6)


def name_of(dtype: torch.dtype) -> str:
    """Return "float32" and the like."""
    return str(dtype).removeprefix("torch.")
