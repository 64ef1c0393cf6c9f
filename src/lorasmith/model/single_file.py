"""Find a base in one file of Stable Diffusion's original layout, .safetensors or .ckpt, as SD v1.5 was published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorasmith.errors import ModelError
from lorasmith.model.architecture import identify
from lorasmith.model.assemble import build, schedule
from lorasmith.model.base_files import BaseFiles, WeightChoice
from lorasmith.model.base_settings import SETTINGS_KEY, read_settings, result_settings
from lorasmith.model.checkpoint_file import Checkpoint, open_checkpoint
from lorasmith.model.original_layout import (
    EMA_PREFIX,
    PREFIXES,
    SD1_SETTINGS,
    ema_name,
    original_unet_names,
    original_vae_names,
    text_config,
    unet_config,
    vae_config,
)
from lorasmith.model.part_weights import PartWeights, Place, canonical_places

_TEXT_LEVEL = "text_model."
_SHOWN = 5
# What some files hold beside a part's own weights: the losses and averages of its training, and buffers.
_BESIDE = {"vae": ("loss.", "model_ema."), "text_encoder": ("logit_scale", "text_projection")}
_SCHEDULE_TOLERANCE = 0.01  # relative; bf16 rounds to 0.004


def read_single_file(path: Path, weights: WeightChoice = "auto") -> tuple[BaseFiles, tuple[str, ...]]:
    """Find the parts of a base in one file.

    Args:
        weights: which of the UNet's weights, where the file has them and their moving average (EMA): "auto" takes the
            weights themselves, as the makers of SD 1.5 advise for fine-tuning.

    Returns:
        What was found, and the parts that the file lacks, of "vae" and "text_encoder".

    Raises:
        ModelError: the file is damaged, unsafe or no base of SD 1.x, or a part of it is incomplete.
    """
    checkpoint = open_checkpoint(path)
    architecture = identify({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    if not architecture.is_base:
        raise architecture.refusal(str(path))
    settings = _settings(checkpoint)
    _check_schedule(checkpoint, settings["scheduler"])
    configs, parts, lacking = {}, {}, []
    configs["unet"], parts["unet"], notes = _unet(checkpoint, settings["unet"], weights)
    for part, read in (("vae", read_original_vae), ("text_encoder", _text_encoder)):
        if any(name.startswith(PREFIXES[part]) for name in checkpoint.tensors):
            configs[part], parts[part] = read(checkpoint, PREFIXES[part], settings[part])
        else:
            lacking.append(part)
    files = BaseFiles(path, "single file", configs, parts, settings["scheduler"], None, notes)
    return files, tuple(lacking)


def _settings(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return what shapes do not tell: as the file states it, else as SD 1.x has it."""
    stated = checkpoint.metadata.get(SETTINGS_KEY)
    if stated is None:
        return {part: dict(values) for part, values in SD1_SETTINGS.items()}
    return read_settings(stated, str(checkpoint.path))


def _unet(
    checkpoint: Checkpoint, settings: Mapping[str, Any], weights: WeightChoice
) -> tuple[dict[str, Any], PartWeights, tuple[str, ...]]:
    prefix = PREFIXES["unet"]
    shapes = _below(checkpoint, prefix)
    if not shapes and any(name.startswith(EMA_PREFIX) for name in checkpoint.tensors):
        raise ModelError(
            "The file holds only the moving average (EMA) of a UNet's weights, and not the weights themselves.",
            where=str(checkpoint.path),
            fix='Use the file that it was taken from; a file named "emaonly" has the average under the usual names.',
        )
    with _incomplete(checkpoint, "UNet"):
        config = unet_config(shapes, settings)
    names = original_unet_names(_parameters("unet", config), config["layers_per_block"])
    keys = {name: prefix + original for name, original in names.items()}
    averaged = {name: ema_name(key) for name, key in keys.items()}
    count = sum(key in checkpoint.tensors for key in averaged.values())
    notes: tuple[str, ...] = ()
    if weights == "ema":
        if not count:
            raise ModelError(
                "The file holds no moving average (EMA) of the UNet's weights beside the weights themselves.",
                where=str(checkpoint.path),
                fix='Use weights = "auto"; a file named "emaonly" holds the average as its only weights.',
            )
        _check_complete(checkpoint, averaged, "UNet's moving average")
        notes = ("Using the moving average (EMA) of the UNet's weights, as asked.",)
    elif count:
        notes = (
            f"The file holds {count} weights of the UNet's moving average (EMA) too; using the weights themselves, "
            'which train better (weights = "ema" takes the others).',
        )
    _check_complete(checkpoint, keys, "UNet")
    _check_unknown(checkpoint, shapes.keys() - names.values(), prefix, "unet")
    used = averaged if weights == "ema" else keys
    return config, _part(checkpoint, "unet", used, config), notes


def read_original_vae(
    checkpoint: Checkpoint, prefix: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], PartWeights]:
    """Return the VAE's settings and weights in a file of the original layout, below ``prefix`` (or "").

    Raises:
        ModelError: it is incomplete.
    """
    shapes = _below(checkpoint, prefix)
    with _incomplete(checkpoint, "VAE"):
        config = vae_config(shapes, settings)
    names = original_vae_names(_parameters("vae", config))
    keys = {name: prefix + original for name, original in names.items()}
    _check_complete(checkpoint, keys, "VAE")
    _check_unknown(checkpoint, shapes.keys() - names.values(), prefix, "vae")
    return config, _part(checkpoint, "vae", keys, config)


def _text_encoder(
    checkpoint: Checkpoint, prefix: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], PartWeights]:
    shapes = _below(checkpoint, prefix)
    level = "" if any(name.startswith(_TEXT_LEVEL) for name in shapes) else _TEXT_LEVEL  # some files leave it out
    with _incomplete(checkpoint, "text encoder"):
        config = text_config({level + name: shape for name, shape in shapes.items()}, settings)
    names = {_full(name): _full(name).removeprefix(level) for name in _parameters("text_encoder", config)}
    keys = {name: prefix + original for name, original in names.items()}
    _check_complete(checkpoint, keys, "text encoder")
    buffers = {name for name in shapes if name.endswith("position_ids")}
    _check_unknown(checkpoint, shapes.keys() - names.values() - buffers, prefix, "text_encoder")
    return config, _part(checkpoint, "text_encoder", keys, config)


def _full(name: str) -> str:
    return name if name.startswith(_TEXT_LEVEL) else _TEXT_LEVEL + name


def _below(checkpoint: Checkpoint, prefix: str) -> dict[str, tuple[int, ...]]:
    return {n.removeprefix(prefix): t.shape for n, t in checkpoint.tensors.items() if n.startswith(prefix)}


def _parameters(part: str, config: dict[str, Any]) -> Mapping[str, Any]:
    return dict(build(part, config).named_parameters())


def _part(checkpoint: Checkpoint, part: str, keys: Mapping[str, str], config: dict[str, Any]) -> PartWeights:
    places: dict[str, Place] = canonical_places(part, {name: (checkpoint, key) for name, key in keys.items()})
    order = {key: index for index, key in enumerate(checkpoint.tensors)}
    ordered = dict(sorted(places.items(), key=lambda item: order[item[1].key]))  # a disk reads best from front to back
    return PartWeights(part, ordered, result_settings(part, config))


@contextmanager
def _incomplete(checkpoint: Checkpoint, part: str) -> Iterator[None]:
    """Turn the lack of a tensor that tells a part's size into a ModelError."""
    try:
        yield
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise ModelError(
            f"The {part} in this file is incomplete: {error}.",
            where=str(checkpoint.path),
            fix="Download or copy the file again, and compare its size and SHA-256.",
        ) from error


def _check_complete(checkpoint: Checkpoint, keys: Mapping[str, str], part: str) -> None:
    missing = sorted(key for key in keys.values() if key not in checkpoint.tensors)
    if missing:
        raise ModelError(
            f"The {part} in this file is incomplete: {len(missing)} of its {len(keys)} weights are missing: "
            f"{_some(missing)}.",
            where=str(checkpoint.path),
            fix="Download or copy the file again, and compare its size and SHA-256.",
        )


def _check_unknown(checkpoint: Checkpoint, unknown: set[str], prefix: str, part: str) -> None:
    unknown = {name for name in unknown if not name.startswith(_BESIDE.get(part, ()))}
    if unknown:
        raise ModelError(
            f"{len(unknown)} weights in this file belong to no {part.replace('_', ' ')} of Stable Diffusion 1.x: "
            f"{_some(sorted(prefix + name for name in unknown))}.",
            where=str(checkpoint.path),
            fix="It is another architecture, or was changed in a way that lorasmith does not know; use another base.",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_schedule(checkpoint: Checkpoint, scheduler: dict[str, Any]) -> None:
    """Refuse a base that was trained with another noise schedule than it would be used with."""
    stored = checkpoint.tensors.get("alphas_cumprod")
    if "v_pred" in checkpoint.tensors:
        problem = "it predicts velocity (v-prediction) instead of noise"
    elif stored is None or scheduler["num_train_timesteps"] != stored.numel:
        return
    else:
        ours = schedule(scheduler)
        difference = float((checkpoint.read("alphas_cumprod").float().flatten() / ours - 1).abs().max())
        if difference <= _SCHEDULE_TOLERANCE:
            return
        problem = f"its noise schedule is not that of Stable Diffusion 1.x (it differs by up to {difference:.0%})"
    raise ModelError(
        f"This base cannot be used: {problem}.",
        where=str(checkpoint.path),
        fix="Use it as a folder in the diffusers layout, whose scheduler says how it was trained.",
    )
