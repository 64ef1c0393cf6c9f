"""Find a base in the diffusers folder layout: one folder for each part, with its config.json and its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorasmith.errors import ModelError
from lorasmith.model.architecture import identify
from lorasmith.model.base_files import PARTS, BaseFiles, WeightChoice
from lorasmith.model.base_settings import result_settings
from lorasmith.model.checkpoint_file import open_checkpoint
from lorasmith.model.part_weights import PartWeights, open_files

_STEMS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
}  # of .safetensors and of .bin files
_SCHEDULER_FILES = ("scheduler_config.json", "config.json")
_COPY = "Copy the base's whole folder."
_CONFIG_LIMIT = 1 << 20
_SHOWN = 3
NON_EMA = ".non_ema"


def read_folder(folder: Path, weights: WeightChoice = "auto") -> BaseFiles:
    """Find the parts of a base in a folder.

    Args:
        weights: which of the UNet's weights, where the folder has those of both kinds: "auto" takes the weights
            themselves (a file named non_ema), which train better than their moving average (EMA).

    Raises:
        ModelError: the folder is no base of SD 1.x, or a part of it is missing or damaged.
    """
    _check_layout(folder)
    found, notes = _unet_variant(folder / "unet", weights)
    configs = {part: read_config(folder / part / "config.json") for part in PARTS}
    parts = {}
    for part in PARTS:
        variants = found if part == "unet" else ("", ".fp16")
        parts[part] = read_part(part, folder / part, configs[part], variants)
    unet = identify({name: place.shape for name, place in parts["unet"].places.items()})
    if unet.kind == "unet" and not unet.supported:  # an SD 2.x folder says StableDiffusionPipeline too
        raise replace(unet, kind="base").refusal(str(folder))
    scheduler = next((f for n in _SCHEDULER_FILES if (f := folder / "scheduler" / n).is_file()), None)
    if scheduler is None:
        raise ModelError("The base's scheduler has no settings.", where=str(folder / "scheduler"), fix=_COPY)
    return BaseFiles(folder, "diffusers folder", configs, parts, read_config(scheduler), folder / "tokenizer", notes)


def read_part(part: str, folder: Path, config: dict[str, Any], variants: Sequence[str] = ("", ".fp16")) -> PartWeights:
    """Return the weights of a part's folder: safetensors files before pickles, the first variant that is there.

    Raises:
        ModelError: there are none, or they are damaged or unsafe.
    """
    files = [open_checkpoint(file) for file in weight_files(folder, part, variants)]
    return open_files(part, files, result_settings(part, config))


def weight_files(folder: Path, part: str, variants: Sequence[str] = ("", ".fp16")) -> tuple[Path, ...]:
    """Return a part's weight files: one file, or the shards of one.

    Raises:
        ModelError: there are none.
    """
    for stem, suffix in zip(_STEMS[part], (".safetensors", ".bin"), strict=True):
        for variant in variants:
            files = [folder / f"{stem}{variant}{suffix}"]
            files = [f for f in files if f.is_file()]
            files = files or sorted(folder.glob(f"{stem}{variant}-*-of-*{suffix}"))  # "model.fp16-00001-of-00002"
            files = files or sorted(folder.glob(f"{stem}-*-of-*{variant}{suffix}") if variant else [])
            if files:
                return tuple(files)
    raise ModelError("The base has no weights for this part.", where=str(folder), fix=_COPY)


def _unet_variant(folder: Path, weights: WeightChoice) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the variants of the UNet's files to look for, the best first, and what to tell the user."""
    own = any(folder.glob(f"*{NON_EMA}*"))
    if weights == "ema":
        return ("", ".fp16"), (
            "Using the moving average (EMA) of the UNet's weights, as asked."
            if own
            else "The folder holds the UNet's weights once, and does not say whether they are a moving average (EMA); "
            "using them.",
        )
    if not own:
        return ("", ".fp16"), ()
    return (NON_EMA,), (
        "The folder holds the UNet's weights and their moving average (EMA); using the weights themselves, which "
        'train better (weights = "ema" takes the others).',
    )


def read_config(file: Path) -> dict[str, Any]:
    """Return a part's settings.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(_CONFIG_LIMIT + 1)
        if len(text) > _CONFIG_LIMIT:
            raise ValueError("it is far too large")
        config = json.loads(text.decode("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no table of settings")
    except OSError as error:
        raise ModelError(f"The settings cannot be read: {error.strerror}.", where=str(file), fix=_COPY) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"The settings are damaged: {error}", where=str(file), fix="Copy the base again.") from error
    return config


def _what_is_inside(folder: Path) -> str:
    """Return what to do about a folder that is no base: name what lies in it, or the folder around it."""
    if (folder.parent / "model_index.json").is_file():
        return f"Name the whole base, {folder.parent}"
    bases = [index.parent for depth in ("*", "snapshots/*") for index in folder.glob(f"{depth}/model_index.json")]
    files = [f for f in folder.glob("*") if f.suffix.lower() in (".safetensors", ".ckpt") and f.is_file()]
    found = [str(path) for path in (*sorted(bases), *sorted(files))]
    if found:
        return f"Name what lies in it: {' or '.join(found[:_SHOWN])}{' or another' * (len(found) > _SHOWN)}"
    return "Name a folder in the diffusers layout, or one .safetensors or .ckpt file."


def _check_layout(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            "This folder is not a base: it has no model_index.json.", where=str(folder), fix=_what_is_inside(folder)
        )
    kind = str(read_config(index).get("_class_name", ""))
    if not kind.startswith("StableDiffusion") or "XL" in kind or "3" in kind or (folder / "text_encoder_2").exists():
        raise ModelError(
            f"This base is a {kind or 'model of no stated kind'}; lorasmith supports Stable Diffusion 1.x.",
            where=str(folder),
            fix="Choose a Stable Diffusion 1.x base.",
        )
    missing = [part for part in (*PARTS, "tokenizer", "scheduler") if not (folder / part).is_dir()]
    if missing:
        raise ModelError(f"The base lacks these parts: {', '.join(missing)}.", where=str(folder), fix=_COPY)
