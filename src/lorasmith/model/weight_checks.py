"""Read the weights of a file, one tensor at a time, for what their names and shapes do not tell."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping

import torch
from torch import Tensor

from lorasmith.events import Progress
from lorasmith.model.checkpoint_file import Checkpoint
from lorasmith.model.file_facts import progress, report_every
from lorasmith.model.file_report import Ema
from lorasmith.model.lora_report import LoraReport, measure_lora
from lorasmith.model.stored_tensor import count_not_finite

_EMA = "model_ema."
EMA_OWN = (f"{_EMA}decay", f"{_EMA}num_updates")
_CHUNK = 1 << 18
_LARGE = 64 << 20  # bytes of weights to read from which on progress is shown


def compare_ema(checkpoint: Checkpoint, compare: bool) -> Generator[Progress, None, Ema | None]:
    """Return how a moving average compares with the weights; its names are theirs without the dots."""
    own = {name for name in checkpoint.tensors if name.startswith(_EMA) and name not in EMA_OWN}
    if not own:
        return None
    weights = [name for name in checkpoint.tensors if name.startswith("model.")]
    pairs = {name: _EMA + name.removeprefix("model.").replace(".", "") for name in weights}
    matched = {name: other for name, other in pairs.items() if other in own}
    distance = None
    if compare and matched:
        distance = yield from _distance(checkpoint, matched)
    decay, updates = (_scalar(checkpoint, name) for name in EMA_OWN)
    return Ema(
        len(own),
        len(weights),
        tuple(name for name in weights if name not in matched),
        tuple(sorted(own - set(pairs.values()))),
        distance,
        decay,
        None if updates is None else int(updates),
    )


def _scalar(checkpoint: Checkpoint, name: str) -> float | None:
    stored = checkpoint.tensors.get(name)
    if stored is None or stored.numel != 1:
        return None
    value = float(checkpoint.read(name).double())
    return value if math.isfinite(value) else None


def _distance(checkpoint: Checkpoint, pairs: Mapping[str, str]) -> Generator[Progress, None, float | None]:
    """Return |average - weights| / |weights|, reading two tensors at a time."""
    total = sum(checkpoint.tensors[name].nbytes * 2 for name in pairs)
    stage, done, apart, size = f"compare EMA of {checkpoint.path.name}", 0, 0.0, 0.0
    if total >= _LARGE:
        yield progress(stage, 0, total)
    for name, other in pairs.items():
        if checkpoint.tensors[name].shape != checkpoint.tensors[other].shape:
            return None
        for one, two in zip(_chunks(checkpoint.read(name)), _chunks(checkpoint.read(other))):
            apart += float(two.sub_(one).square_().sum())
            size += float(one.square_().sum())
        before, done = done, done + 2 * checkpoint.tensors[name].nbytes
        if total >= _LARGE and (report_every(done, before) or done == total):
            yield progress(stage, done, total)
    ratio = math.sqrt(apart / size) if size else math.nan
    return ratio if math.isfinite(ratio) else None


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield copies of stretches of a tensor, in at least float32; sums of so few are as exact as their numbers."""
    flat = tensor.reshape(-1)
    wide = torch.promote_types(flat.dtype, torch.float32) if flat.dtype.itemsize > 1 else torch.float32
    return (flat[start : start + _CHUNK].to(wide, copy=True) for start in range(0, flat.numel(), _CHUNK))


def measured_lora(checkpoint: Checkpoint) -> Generator[Progress, None, LoraReport]:
    steps, total = measure_lora(checkpoint), sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    while True:
        try:
            done, count = next(steps)
        except StopIteration as end:
            report: LoraReport = end.value
            return report
        if total >= _LARGE and (done % 16 == 1 or done == count):
            yield Progress(f"measure {checkpoint.path.name}", done - (done != count), count, "layers")


def not_finite(checkpoint: Checkpoint) -> Generator[Progress, None, dict[str, int]]:
    """Return the tensors that hold NaN or infinity, with how many."""
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    stage, done, found = f"check {checkpoint.path.name}", 0, {}
    if total >= _LARGE:
        yield progress(stage, 0, total)
    for name, stored in checkpoint.tensors.items():
        if count := count_not_finite(checkpoint.read(name)):
            found[name] = count
        before, done = done, done + stored.nbytes
        if total >= _LARGE and (report_every(done, before) or done == total):
            yield progress(stage, done, total)
    return found
