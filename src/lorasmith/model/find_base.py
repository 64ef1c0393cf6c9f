"""From a base's name to its files: the built-in one, a folder, one file, or a model of the Hugging Face hub."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from lorasmith.errors import ModelError
from lorasmith.model.base_files import PARTS, BaseFiles, WeightChoice
from lorasmith.model.base_settings import result_settings
from lorasmith.model.checkpoint_file import open_checkpoint
from lorasmith.model.diffusers_folder import NON_EMA, read_config, read_folder, read_part, weight_files
from lorasmith.model.file_facts import printable
from lorasmith.model.original_layout import PREFIXES, SD1_SETTINGS, original_vae_names, vae_config
from lorasmith.model.part_weights import PartWeights, open_files
from lorasmith.model.single_file import read_original_vae, read_single_file
from lorasmith.starter.paths import starter_folder

_FORMS = (
    'lorasmith reads "starter", a folder in the diffusers layout, one .safetensors or .ckpt file, or a hub id '
    "(owner/name)."
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["model_index.json", "*/*.json", "tokenizer/*"]
_HUB_WEIGHTS = ["unet/*.safetensors", "vae/*.safetensors", "text_encoder/*.safetensors"]
_HUB_LEAVE = ["safety_checker/*", "*.fp16.*"]


def find_base(name: str, *, vae: str | None = None, weights: WeightChoice = "auto") -> BaseFiles:
    """Find the files of a base, reading their lists of contents only.

    Args:
        name: "starter"; a folder in the diffusers layout; a .safetensors or .ckpt file in the original layout; or
            the id of a model on the Hugging Face hub.
        vae: a VAE to use instead of the base's own: a file in either layout, or a folder.
        weights: which of the UNet's weights, where the base has them and their moving average.

    Raises:
        ModelError: see ``load_base``.
    """
    path = _path(name)
    lacking: tuple[str, ...] = ()
    if name != "starter" and path.is_file():
        files, lacking = read_single_file(path, weights)
    else:
        files = read_folder(find_folder(name, weights), weights)
    if vae:
        config, part = find_vae(vae)
        files = replace(files, configs={**files.configs, "vae": config}, weights={**files.weights, "vae": part})
        lacking = tuple(part for part in lacking if part != "vae")
    if lacking:
        names = " and no ".join(part.replace("_", " ").replace("vae", "VAE") for part in lacking)
        vae_fix = "Name a VAE file for it with `vae` (--vae)." if lacking == ("vae",) else ""
        raise ModelError(
            f"The file holds a UNet but no {names}.",
            where=name,
            fix=vae_fix or "Use the whole base; this file was made to be loaded on top of one.",
        )
    return files


def find_folder(name: str, weights: WeightChoice = "auto") -> Path:
    """Return the folder of a base's name, which is no single file.

    Raises:
        ModelError: there is none.
    """
    if name == "starter":
        if not (starter_folder() / "model_index.json").is_file():
            raise ModelError(
                "The starter model is not in this installation.",
                where=str(starter_folder()),
                fix="Install lorasmith again, or make it: python -m lorasmith.starter.build --out DIR",
            )
        return starter_folder()
    path = _path(name)
    if path.is_dir():
        return path
    if _HUB_ID.fullmatch(name) and path.suffix not in (".safetensors", ".ckpt", ".pt", ".bin"):
        return _hub_folder(name, weights)
    raise ModelError(f'There is no base "{name}".', where=str(path.absolute()), fix=f"{_meant(name)}{_FORMS}")


def _path(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user's home, a zero byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"A base cannot be named so: {reason}.", where=printable(name), fix=_FORMS) from error
    return path


def _meant(name: str) -> str:
    """Return a question about a name that is nearly one of a file or folder here, or ""."""
    plain = name.strip().strip("\"'")
    for text in (plain, plain.replace("\\", "/"), f"{plain}.safetensors", f"{plain}.ckpt"):
        with suppress(OSError):  # too long with its ending
            if text and text != name and Path(text).expanduser().exists():
                return f'Did you mean "{text}"? '
    path = Path(plain.replace("\\", "/")).expanduser()
    if path.exists():
        return "What is there is neither a file nor a folder. "
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"There is no folder {path.parent} that can be read. "
    close = get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f'Did you mean "{path.with_name(close[0])}"? ' if close else ""


def _hub_folder(name: str, weights: WeightChoice) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if _has_weights(folder):
            return folder
    except OSError:  # not in the cache: the hub's LocalEntryNotFoundError is one
        pass
    leave = [*_HUB_LEAVE, *([] if weights == "non-ema" else [f"*{NON_EMA}*"])]
    try:
        wanted = [*_HUB_FILES, *_HUB_WEIGHTS]
        folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=leave, etag_timeout=5))
        if not _has_weights(folder):  # published before safetensors
            wanted = [*wanted, *(pattern.replace("safetensors", "bin") for pattern in _HUB_WEIGHTS)]
            folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=leave, etag_timeout=5))
        return folder
    except Exception as error:  # the hub client raises what its transport raises
        raise ModelError(
            f'"{name}" is neither a folder here nor in the cache of the Hugging Face hub, and cannot be downloaded.',
            where=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix=f"Check the name and the network, or copy the model's folder or file to this machine. {_FORMS}",
        ) from error


def _has_weights(folder: Path) -> bool:
    try:
        return all((folder / part / "config.json").is_file() and weight_files(folder / part, part) for part in PARTS)
    except ModelError:
        return False


def find_vae(name: str) -> tuple[dict[str, object], PartWeights]:
    """Return the settings and the weights of a VAE: a folder with a config.json, a base, or a file in either layout.

    Raises:
        ModelError: it is no such thing.
    """
    path = _path(name)
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
        config = read_config(folder / "config.json")
        return config, read_part("vae", folder, config)
    if not path.is_file():
        raise ModelError(
            f'There is no VAE "{name}".',
            where=str(path.absolute()),
            fix="Name a .safetensors, .ckpt or .pt file with a VAE, or its folder.",
        )
    checkpoint = open_checkpoint(path)
    settings = SD1_SETTINGS["vae"]
    for prefix in (PREFIXES["vae"], ""):
        if f"{prefix}decoder.conv_in.weight" in checkpoint.tensors:
            if f"{prefix}encoder.down.0.block.0.conv1.weight" in checkpoint.tensors:
                return read_original_vae(checkpoint, prefix, settings)
            if "encoder.down_blocks.0.resnets.0.conv1.weight" in checkpoint.tensors:
                part = open_files("vae", [checkpoint], {})
                names = original_vae_names(part.places)
                config = vae_config({names[n]: place.shape for n, place in part.places.items()}, settings)
                return config, replace(part, settings=result_settings("vae", config))
    raise ModelError(
        "This file holds no VAE of Stable Diffusion 1.x.", where=name, fix="Name a VAE's file, or a whole base."
    )
