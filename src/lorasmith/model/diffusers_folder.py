"""Find and read a base in the diffusers folder layout: one folder for each part, weights in safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, dtype

from lorasmith.errors import ModelError
from lorasmith.starter.paths import starter_folder

_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_FORMS = 'lorasmith reads "starter", a folder in the diffusers layout with safetensors weights, or a hub id.'
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["model_index.json", "*/*.json", "tokenizer/*", *(f"{part}/{stem}*" for part, stem in _WEIGHTS.items())]
_HUB_LEAVE = ["safety_checker/*", "*.bin", "*.pt", "*.onnx*", "*.msgpack", "*.h5", "*non_ema*", "*.fp16.*"]


@dataclass(frozen=True)
class Parts:
    """What a base is made of, frozen and ready to compute; ``files`` names the files that each part came from."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    alphas_cumprod: Tensor
    scheduler_config: dict[str, Any]
    files: dict[str, tuple[Path, ...]]


def find_folder(name: str) -> Path:
    """Return the folder of a base's name; see ``load_base``.

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
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError("A base in a single file cannot be loaded yet.", where=name, fix=_FORMS)
    if _HUB_ID.fullmatch(name):
        return _hub_folder(name)
    raise ModelError(f'There is no base "{name}".', where=str(path.absolute()), fix=_FORMS)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if all((folder / part / "config.json").is_file() for part in _WEIGHTS):
            return folder
    except OSError:  # not in the cache: the hub's LocalEntryNotFoundError is one
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_LEAVE, etag_timeout=5))
    except Exception as error:  # the hub client raises what its transport raises
        raise ModelError(
            f'"{name}" is neither a folder here nor in the cache of the Hugging Face hub, and cannot be downloaded.',
            where=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix=f"Check the name and the network, or copy the model's folder to this machine. {_FORMS}",
        ) from error


def load_parts(folder: Path, dtype: dtype) -> Parts:
    """Read every part of a base; the memory needed at the peak is its own and one weight file's.

    Raises:
        ModelError: as ``load_base``.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    _check_layout(folder)
    files = {
        part: (folder / part / "config.json", *_weight_files(folder / part, stem)) for part, stem in _WEIGHTS.items()
    }
    with _quiet():
        unet = _read_part(UNet2DConditionModel, folder / "unet", files["unet"], torch_dtype=dtype)
        vae = _read_part(AutoencoderKL, folder / "vae", files["vae"])
        text_encoder = _read_part(CLIPTextModel, folder / "text_encoder", files["text_encoder"])
        with _explained(folder / "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        with _explained(folder / "scheduler"):
            scheduler_config = dict(DDPMScheduler.load_config(folder / "scheduler", local_files_only=True))
            alphas_cumprod = DDPMScheduler.from_config(scheduler_config).alphas_cumprod
    _check_architecture(folder, unet, vae, text_encoder)
    return Parts(unet, vae, text_encoder, tokenizer, alphas_cumprod, scheduler_config, files)


def _check_layout(folder: Path) -> None:
    index = folder / "model_index.json"
    try:
        kind = str(json.loads(index.read_text(encoding="utf-8")).get("_class_name", ""))
    except OSError as error:
        raise ModelError(
            "This folder is not a base: it has no model_index.json.", where=str(folder), fix=_FORMS
        ) from error
    except (ValueError, AttributeError) as error:
        raise ModelError(
            "The base's model_index.json is damaged.", where=str(index), fix="Copy the base again."
        ) from error
    if not kind.startswith("StableDiffusion") or "XL" in kind or "3" in kind or (folder / "text_encoder_2").exists():
        raise ModelError(
            f"This base is a {kind or 'model of no stated kind'}; lorasmith supports Stable Diffusion 1.x.",
            where=str(folder),
            fix="Choose a Stable Diffusion 1.x base.",
        )
    missing = [part for part in (*_WEIGHTS, "tokenizer", "scheduler") if not (folder / part).is_dir()]
    if missing:
        raise ModelError(
            f"The base lacks these parts: {', '.join(missing)}.", where=str(folder), fix="Copy the base's whole folder."
        )


def _weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """Return a part's weight files: the plain ones, else the fp16 variant's; one file, or several with an index."""
    for variant in ("", ".fp16"):
        files = [folder / f"{stem}{variant}.safetensors"]
        files = [f for f in files if f.is_file()] or sorted(folder.glob(f"{stem}{variant}-*-of-*.safetensors"))
        if files:
            return tuple(files)
    pickles = sorted(f.name for f in folder.glob("*") if f.suffix in (".bin", ".pt", ".ckpt"))
    if pickles:
        raise ModelError(
            f"The weights are pickles ({', '.join(pickles)}), which can run code when opened; they are not opened.",
            where=str(folder),
            fix="Get the base's safetensors files.",
        )
    raise ModelError("The base has no weights for this part.", where=str(folder), fix="Copy the base's whole folder.")


def _read_part(kind: Any, folder: Path, files: tuple[Path, ...], **options: Any) -> Any:
    variant = "fp16" if ".fp16" in files[-1].name else None
    with _explained(folder):
        part, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, variant=variant, output_loading_info=True, **options
        )
    lacking = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if lacking:  # diffusers would fill these with random numbers and only log it
        raise ModelError(
            f"{len(lacking)} weights are missing or of the wrong shape, such as {', '.join(lacking[:3])}.",
            where=str(files[-1]),
            fix="Copy the base again; its config.json and weights do not belong together.",
        )
    return part.requires_grad_(False).eval()


def _check_architecture(folder: Path, unet: Any, vae: Any, text_encoder: Any) -> None:
    problems = []
    if unet.config.in_channels != vae.config.latent_channels:
        kind = "an inpainting or depth model" if unet.config.in_channels > vae.config.latent_channels else "mismatched"
        problems.append(
            f"its UNet takes {unet.config.in_channels} channels and its VAE makes {vae.config.latent_channels} ({kind})"
        )
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        problems.append(
            f"its UNet reads text of width {unet.config.cross_attention_dim} and its text encoder writes "
            f"{text_encoder.config.hidden_size}"
        )
    if unet.config.addition_embed_type or unet.config.class_embed_type or unet.config.time_cond_proj_dim:
        problems.append("its UNet wants more inputs than a picture, a time and a text")
    if problems:
        raise ModelError(
            f"This base is not a Stable Diffusion 1.x: {'; '.join(problems)}.",
            where=str(folder),
            fix="Choose a Stable Diffusion 1.x base.",
        )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise about a part's files into a ModelError."""
    try:
        yield
    except Exception as error:  # they share no base class: OSError, ValueError, SafetensorError, RuntimeError, ...
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"The base's {folder.name} cannot be read: {reason[0] if reason else type(error).__name__}",
            where=str(folder),
            fix="Copy the base again.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers and transformers from drawing progress bars and logging on the user's screen."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = [
        (log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_logging, transformers_logging)
    ]
    for log, _, _ in before:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
