"""From a base's files to its parts in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import ModelError
from lorasmith.model.base_files import PARTS, BaseFiles
from lorasmith.model.clip_tokenizer import clip_tokenizer
from lorasmith.model.part_weights import PartWeights, fill


@dataclass(frozen=True)
class Parts:
    """What a base is made of, frozen and ready to compute; ``weights`` tells where each part came from."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    alphas_cumprod: Tensor
    scheduler_config: dict[str, Any]
    weights: Mapping[str, PartWeights]


def load_parts(files: BaseFiles, dtype: torch.dtype) -> Parts:
    """Read every part of a base: the UNet and the text encoder in ``dtype``, the VAE in ``vae_dtype`` of it.

    The memory needed at the peak is the parts' own and one tensor's.

    Raises:
        ModelError: as ``load_base``.
    """
    modules = {part: build(part, files.configs[part], files.path) for part in PARTS}
    check_architecture(files.path, **modules)
    for part, module in modules.items():
        fill(module, files.weights[part], vae_dtype(dtype) if part == "vae" else dtype)
    return Parts(
        **modules,
        tokenizer=_tokenizer(files, modules["text_encoder"].config),
        alphas_cumprod=schedule(files.scheduler, files.path),
        scheduler_config=files.scheduler,
        weights=files.weights,
    )


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the VAE's dtype beside a UNet in ``dtype``; bfloat16's 8 bits of mantissa would show as banding."""
    return torch.float16 if dtype == torch.float16 else torch.float32


def build(part: str, config: Mapping[str, Any], where: Path | None = None) -> Any:
    """Return a part's module with its parameters on the meta device: it takes no memory and no time to fill.

    Raises:
        ModelError: the settings describe no such module.
    """
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with _quiet(), _explained(part, where), init_empty_weights():
        if part == "text_encoder":
            return CLIPTextModel(CLIPTextConfig.from_dict(dict(config))).eval()
        return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(dict(config)).eval()


def schedule(config: Mapping[str, Any], where: Path | None = None) -> Tensor:
    """Return the product of alphas of a noise schedule's settings, (steps,), float32.

    Raises:
        ModelError: the settings describe no schedule.
    """
    from diffusers import DDPMScheduler

    with _quiet(), _explained("scheduler", where):
        alphas_cumprod: Tensor = DDPMScheduler.from_config(dict(config)).alphas_cumprod
    return alphas_cumprod


def _tokenizer(files: BaseFiles, config: Any) -> Any:
    if files.tokenizer is None:
        return clip_tokenizer(int(config.vocab_size), int(config.max_position_embeddings))
    from transformers import CLIPTokenizer

    with _quiet(), _explained("tokenizer", files.tokenizer):
        return CLIPTokenizer.from_pretrained(files.tokenizer, local_files_only=True)


def check_architecture(where: Path, unet: Any, vae: Any, text_encoder: Any) -> None:
    """Refuse parts that do not belong together, or to another kind of model.

    Raises:
        ModelError: with every reason.
    """
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
            where=str(where),
            fix="Choose a Stable Diffusion 1.x base.",
        )


@contextmanager
def _explained(part: str, where: Path | None) -> Iterator[None]:
    """Turn what the libraries raise about a part's settings into a ModelError."""
    try:
        yield
    except Exception as error:  # they share no base class: OSError, ValueError, TypeError, RuntimeError, ...
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"The base's {part} cannot be read: {reason[0] if reason else type(error).__name__}",
            where=str(where) if where else None,
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
