"""What a training writes: checkpoints that hold all it needs to go on, and at the end the LoRA itself.

A checkpoint's ``state.safetensors`` holds AdamW's moments as ``optimizer.<parameter number>.<name>`` and, as JSON
in the metadata under ``state``, the step, the sampler's place and the loss scale. With ``train.ema`` the LoRA is the
moving average, and the weights themselves are in the state, as ``weights.<parameter number>``. There is no random state
to keep: everything random is drawn from the seed and the step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from lorasmith import files
from lorasmith.errors import LoraError, RunError
from lorasmith.model.formats import read_lora, write_diffusers
from lorasmith.model.lora import Lora

LORA_FILE = "lora.safetensors"
STATE_FILE = "state.safetensors"


def write_checkpoint(
    folder: Path,
    lora: Lora,
    optimizer: torch.optim.Optimizer,
    weights: Sequence[torch.Tensor],
    state: dict[str, Any],
    metadata: dict[str, str],
) -> None:
    """Write a checkpoint's two files into ``folder`` and compare them with what is in memory.

    Args:
        weights: the adapter's parameters, where ``lora`` is their average; else none.
        state: JSON values that a training needs besides its tensors.
        metadata: what the LoRA file says of itself.

    Raises:
        RunError: a weight is not finite, or the state does not read back.
        LoraError: the LoRA does not read back.
        OutputError: the disk refuses.
    """
    write_lora(lora, folder / LORA_FILE, write_diffusers, metadata)
    tensors = {
        f"optimizer.{number}.{name}": value.detach().cpu().contiguous()
        for number, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }
    tensors |= {f"weights.{number}": value.detach().cpu().contiguous() for number, value in enumerate(weights)}
    data = safetensors.torch.save(tensors, {"state": json.dumps(state)})
    files.write_bytes(folder / STATE_FILE, data)
    if (folder / STATE_FILE).read_bytes() != data:
        raise RunError("The checkpoint does not read back.", where=str(folder / STATE_FILE), fix="Check the disk.")


@dataclass(frozen=True)
class Checkpoint:
    """What ``write_checkpoint`` wrote; ``moments`` are the optimizer's state by parameter number."""

    lora: Lora
    moments: dict[int, dict[str, torch.Tensor]]
    weights: list[torch.Tensor]
    state: dict[str, Any]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return what ``write_checkpoint`` wrote.

    Raises:
        RunError: the state cannot be read.
        LoraError: the LoRA cannot be read.
    """
    path = folder / STATE_FILE
    moments: dict[int, dict[str, torch.Tensor]] = {}
    weights: dict[int, torch.Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            for key in file.keys():  # noqa: SIM118 - the file is no dict
                what, number, *name = key.split(".")
                if what == "weights":
                    weights[int(number)] = file.get_tensor(key)
                else:
                    moments.setdefault(int(number), {})[name[0]] = file.get_tensor(key)
    except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise _unreadable(path) from error
    return Checkpoint(read_lora(folder / LORA_FILE), moments, [weights[number] for number in sorted(weights)], state)


def read_state(folder: Path) -> dict[str, Any]:
    """Return the JSON values of a checkpoint alone, without its tensors.

    Raises:
        RunError: they cannot be read.
    """
    path = folder / STATE_FILE
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path) from error
    return state


def write_lora(lora: Lora, path: Path, write: Callable[..., None], metadata: dict[str, str]) -> Path:
    """Write ``lora`` to ``path`` with one of the writers of ``lorasmith.model.formats``, and prove that it reads back.

    Raises:
        RunError: a weight is not finite.
        LoraError: what is on disk is not what is in memory.
        OutputError: the disk refuses.
    """
    require_finite(lora)
    write(lora, path, metadata)
    again = read_lora(path)
    same = again.tensors.keys() == lora.tensors.keys() and all(
        torch.equal(tensor.cpu(), again.tensors[name]) for name, tensor in lora.tensors.items()
    )
    if not same or (again.rank, again.alpha) != (lora.rank, lora.alpha):
        raise LoraError(
            "The LoRA that was written does not read back as the same weights.",
            where=str(path),
            fix="Check the disk. The last checkpoint holds the same weights.",
        )
    return path


def _unreadable(path: Path) -> RunError:
    return RunError(
        "The checkpoint's state cannot be read.", where=str(path), fix="Go on from the checkpoint before it."
    )


def require_finite(lora: Lora) -> None:
    """Raise RunError if a weight is NaN or infinite, so that such weights are never saved."""
    broken = [name for name, tensor in lora.tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise RunError(
            f"{len(broken)} of the LoRA's {len(lora.tensors)} weights are no longer finite; they are not saved.",
            where=broken[0],
            fix=DIVERGED,
        )


DIVERGED = (
    'Lower train.learning_rate, lengthen train.warmup, or set train.precision = "fp32". '
    "Checkpoints saved before are good."
)
