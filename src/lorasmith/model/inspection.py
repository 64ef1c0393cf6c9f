"""Say what is in files of weights, without loading a model and without running anything of them.

    report = yield from inspect(Path("v1-5-pruned.ckpt"), Options())

Weights are read one tensor at a time, and only for what asks for it: the distance of a moving average (EMA) from the
weights, a LoRA's norms, and the search for NaN. So the peak of memory is two tensors, whatever the file's size.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.errors import ModelError
from lorasmith.events import Progress
from lorasmith.model.architecture import Architecture, identify
from lorasmith.model.architecture_marks import Shape
from lorasmith.model.checkpoint_errors import DAMAGED_FIX
from lorasmith.model.checkpoint_file import Checkpoint, open_checkpoint
from lorasmith.model.file_facts import hash_file, pickle_globals, printable, stated_hash
from lorasmith.model.file_report import FileReport, Part, Report
from lorasmith.model.weight_checks import EMA_OWN, compare_ema, measured_lora, not_finite

_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "vae.": "vae",
    "cond_stage_model.": "text encoder",
    "conditioner.": "text encoder",
    "text_encoders.": "text encoder",
    "model_ema.": "ema",
    "control_model.": "controlnet",
}
_LORA_TEXT = re.compile(r"lora_te\d?_|text_encoder(_2)?\.|te\.")
_SMALL = ("lora", "embedding")  # known elsewhere by the hash of their weights alone
_MAX_JSON = 1 << 20
_TOLD_BY_NAMES = (
    ("string_to_param", Architecture("embedding", "Stable Diffusion")),
    ("activation_func", Architecture("hypernetwork", "Stable Diffusion")),
    ("layer_structure", Architecture("hypernetwork", "Stable Diffusion")),
    ("params_ema", Architecture("upscaler", "super-resolution")),
)


@dataclass(frozen=True)
class Options:
    """What ``inspect`` shall do besides reading a file's list of contents.

    Attributes:
        hashes: read the whole file for its hashes.
        compare: read the weights and their moving average for their distance, and a LoRA for its norms.
        check_weights: read every weight, looking for NaN and infinity.
    """

    hashes: bool = True
    compare: bool = True
    check_weights: bool = False


def inspect(path: Path, options: Options) -> Generator[Progress, None, Report]:
    """Find out what a file of weights, or a folder of such files, holds; large ones say how far they are.

    A file that is unsafe, damaged or no file of weights is told in its report.

    Raises:
        ModelError: there is nothing of that name, or no file of weights in the folder.
    """
    if not path.is_dir():
        report = yield from _file(path, "", None, options)
        if report.verdict == "unreadable":
            raise ModelError(report.reason, where=str(path), fix=report.fix)
        return Report(path, (report,))
    files = _weight_files(path)
    if not files:
        raise ModelError(
            "There is no file of weights in this folder.",
            where=str(path),
            fix=f"Name a folder with files that end in {', '.join(_WEIGHTS)}, or such a file.",
        )
    reports = []
    for group in _shards(files):
        whole = _shapes_of(group) if len(group) > 1 else None
        for file in group:
            part = file.parent.name if file.parent != path else ""
            reports.append((yield from _file(file, part, whole, options)))
    return Report(path, tuple(reports), *_pipeline(path))


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of weights in a folder and in the folders of a model's parts, those of a model in order."""
    order = ("", "unet", "transformer", "prior", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    found = [p for pattern in ("*", "*/*") for p in folder.glob(pattern) if p.suffix in _WEIGHTS and p.is_file()]
    found = [p for p in found if p.parent == folder or (p.parent / "config.json").is_file()]

    def rank(path: Path) -> tuple[int, str]:
        part = "" if path.parent == folder else path.parent.name
        return (order.index(part) if part in order else len(order), path.as_posix())

    return sorted(found, key=rank)


def _shards(files: Iterable[Path]) -> list[list[Path]]:
    """Put the pieces of a model that is cut into several files together ("model-00001-of-00002.safetensors")."""
    groups: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        groups[file.with_name(re.sub(r"-\d{5}-of-", "-*-of-", file.name))].append(file)
    return list(groups.values())


def _shapes_of(files: Iterable[Path]) -> dict[str, Shape] | None:
    """Return the shapes of several pieces together, or None if one of them cannot be opened."""
    try:
        return {name: t.shape for file in files for name, t in open_checkpoint(file).tensors.items()}
    except ModelError:
        return None


def _pipeline(folder: Path) -> tuple[str, dict[str, Any]]:
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    names = ("_class_name", "prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
    settings = {name: scheduler[name] for name in names if isinstance(scheduler.get(name), (str, int, float))}
    return printable(str(_json(folder / "model_index.json").get("_class_name", ""))), settings


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as stream:
            found = json.loads(stream.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _file(
    path: Path, part: str, whole: Mapping[str, Shape] | None, options: Options
) -> Generator[Progress, None, FileReport]:
    """Report on one file; ``whole`` are the shapes of the model of which it is one piece."""
    try:
        checkpoint = open_checkpoint(path)
    except ModelError as error:
        facts = _refused(path, error)
    else:
        facts = yield from _opened(checkpoint, whole, options)
    if facts["verdict"] == "unreadable":
        return FileReport(path, part, 0, **facts)
    opened = facts["verdict"] == "safe"
    alone = opened and (facts["architecture"].kind in _SMALL or bool(stated_hash(facts["metadata"])))
    hashes = (yield from hash_file(path, weights_alone=alone)) if options.hashes else None
    return FileReport(path, part, path.stat().st_size, pickle_globals=pickle_globals(path), hashes=hashes, **facts)


def _opened(
    checkpoint: Checkpoint, whole: Mapping[str, Shape] | None, options: Options
) -> Generator[Progress, None, dict[str, Any]]:
    """Return the facts of a file that is plainly a list of tensors."""
    architecture = identify(whole or {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    facts: dict[str, Any] = {
        "verdict": "safe",
        "container": checkpoint.layout,
        "architecture": architecture,
        "parts": tuple(_parts(checkpoint, architecture)),
        "scalars": dict(checkpoint.scalars),
        "metadata": dict(checkpoint.metadata),
        "left_out": checkpoint.left_out,
        "ema": (yield from compare_ema(checkpoint, options.compare)),
    }
    if architecture.kind == "lora" and not architecture.noun and options.compare:
        facts["lora"] = yield from measured_lora(checkpoint)
    if options.check_weights:
        facts["not_finite"] = yield from not_finite(checkpoint)
    return facts


def _refused(path: Path, error: ModelError) -> dict[str, Any]:
    """Return verdict and reason of a file that was not opened."""
    facts: dict[str, Any] = {"verdict": "not supported", "reason": error.what, "fix": error.fix or ""}
    if "Nothing in the file was run." in error.what:
        facts["verdict"] = "unsafe"
    elif error.fix == DAMAGED_FIX:
        facts["verdict"] = "damaged"
    elif error.what.startswith("The file cannot be read"):
        facts["verdict"] = "unreadable"
    place = (error.where or "").removeprefix(str(path)).strip(" :,")
    if place:
        facts["place"] = place
    # Some programs' files hold their weights where lorasmith does not look; the names that it met tell them.
    for mark, architecture in _TOLD_BY_NAMES:
        if mark in error.what:
            facts["architecture"] = architecture
    return facts


def _parts(checkpoint: Checkpoint, architecture: Architecture) -> Iterator[Part]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in checkpoint.tensors:
        groups[_part(name, architecture)].append(name)
    for part in sorted(groups, key=lambda part: part == "other"):
        tensors = [checkpoint.tensors[name] for name in groups[part]]
        yield Part(
            part,
            len(tensors),
            sum(t.numel for t in tensors if t.dtype.is_floating_point or t.dtype.is_complex),
            sum(t.nbytes for t in tensors),
            dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors).most_common()),
        )


def _part(name: str, architecture: Architecture) -> str:
    if architecture.kind == "lora":
        return "text encoder" if _LORA_TEXT.match(name) else "unet" if architecture.name.startswith("S") else "lora"
    if name in EMA_OWN:
        return "other"
    if architecture.layout in ("original", "") and architecture.kind in ("base", "controlnet", "unknown"):
        return next((part for prefix, part in _PREFIXES.items() if name.startswith(prefix)), "other")
    return architecture.kind
