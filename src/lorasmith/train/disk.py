"""What a training will write, told before it begins."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator

from lorasmith.events import Event, Note
from lorasmith.files import require_writable
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train.estimate import save_every

_BESIDES = 4 << 20  # bytes of headers, logs and curves


def check_disk(run: Run, recipe: Recipe, adapter: int, samples: int, size: int, done: int = 0) -> Iterator[Event]:
    """Say how much the rest of a training writes into its run folder.

    Args:
        adapter: bytes of the LoRA's weights.
        samples: pictures drawn at each checkpoint.
        size: their side, in pixels.
        done: steps behind the run.

    Raises:
        OutputError: the disk cannot be written, or is too full for it.
    """
    saves = math.ceil((recipe.train.steps - done) / save_every(recipe))
    kept = kept_checkpoints(recipe, saves)
    pictures = (saves + 1) * samples * 3 * size**2 * 2  # in the folder and in TensorBoard, if no pixel compresses
    states = 4 if recipe.train.ema else 3  # a checkpoint holds the weights, AdamW's two moments, and the average
    need = (kept + 1) * states * adapter + 2 * adapter + pictures + _BESIDES  # one more while the next is written
    require_writable(run.path, need)
    free = shutil.disk_usage(run.path).free
    what = f"{kept} checkpoint{'s' * (kept != 1)} of {_mib(states * adapter)}"
    yield Note(f"Disk: at most {_mib(need)} for {what}, the samples and the LoRA; {_mib(free)} are free.")


def kept_checkpoints(recipe: Recipe, saves: int) -> int:
    """Return how many of ``saves`` checkpoints stay."""
    settings = recipe.train
    for_good = saves * save_every(recipe) // settings.keep_every if settings.keep_every else 0
    return min(saves, settings.keep_last + 1 + for_good)  # 1: the best


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:,.1f} MiB"
