"""A loaded Stable Diffusion base: its parts, and the few things everyone asks of them.

Nothing here assumes the numbers of SD v1.5 (a VAE of factor 8 with 4 channels, text of width 768, 77 tokens):
each is read from the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.errors import DeviceError, ModelError, RecipeError
from lorasmith.model.assemble import load_parts, vae_dtype
from lorasmith.model.base_files import WeightChoice
from lorasmith.model.find_base import find_base
from lorasmith.model.part_weights import PartWeights

_TEXTS_AT_ONCE = 64  # bounds the memory of encode_text


@dataclass
class StableDiffusion:
    """A base model in memory.

    Attributes:
        unet, text_encoder: in ``dtype``, frozen.
        vae: in float16 where ``dtype`` is that, else in float32 (bfloat16's 8 bits of mantissa show as banding).
        tokenizer: CLIP's byte-pair tokenizer.
        alphas_cumprod: (steps,) float32 on the CPU, the product of alphas of Ho et al. 2020.
        prediction_type: "epsilon" or "v_prediction".
        scheduler_config: the noise schedule's settings as the base's folder gives them.
        source: the name it was loaded by.
        weights: where each part's weights lie, for ``sha256``.
        notes: what the user should know about the choices made in loading, one line each.
        device, dtype: where it computes. A part may be elsewhere for a while (``sd.vae.to("cpu")``): the methods
            take their inputs to the part and bring the result to ``device``.
        originals: weights that ``fuse`` replaced, by module name, on the CPU.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    alphas_cumprod: Tensor
    prediction_type: str
    scheduler_config: dict[str, Any]
    source: str
    weights: Mapping[str, PartWeights]
    notes: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    originals: dict[str, Tensor]

    @property
    def latent_channels(self) -> int:
        """Channels of a latent; 4 in SD v1.5."""
        return int(self.vae.config.latent_channels)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell along a side; 8 in SD v1.5."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size(self) -> int:
        """The side of the square pictures that the base was made for, in pixels."""
        return int(self.unet.config.sample_size) * self.vae_factor

    @property
    def scaling_factor(self) -> float:
        """What the VAE's latents are multiplied by before the UNet sees them."""
        return float(self.vae.config.scaling_factor)

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that the text encoder reads, the first and last marks included; 77 in SD v1.5."""
        return min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))

    @cached_property
    def sha256(self) -> str:
        """A hash over every part's weights, the same in any layout of the files. Reads them once, when first asked."""
        parts = [f"{part} {self._part_sha256(part)}" for part in sorted(self.weights)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def vae_sha256(self) -> str:
        """The same over the VAE alone: latents depend on nothing else of the base."""
        return self.weights["vae"].sha256()

    def _part_sha256(self, part: str) -> str:
        return self.vae_sha256 if part == "vae" else self.weights[part].sha256()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StableDiffusion:
        """Move every part, in place, and return ``self``. LoRA weights of an attached adapter stay in float32."""
        self.device, self.dtype = torch.device(device), dtype or self.dtype
        for part in (self.unet, self.text_encoder):
            part.to(self.device)
            _cast(part, self.dtype)
        self.vae.to(self.device)
        _cast(self.vae, vae_dtype(self.dtype))
        return self

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of the latents of pictures.

        Args:
            pictures: (N, H, W, 3) uint8; H and W multiples of ``vae_factor``.

        Returns:
            Two float32 tensors (N, C, H / factor, W / factor), already multiplied by ``scaling_factor``. The VAE
            sees all N at once; its activations need about 2 KiB a pixel in float32 for SD v1.5.
        """
        x = pictures.to(self.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = self.vae.encode(x.to(self.vae.dtype)).latent_dist
        scale = self.scaling_factor
        return (latents.mean.float() * scale).to(self.device), (latents.std.float() * scale).to(self.device)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the pictures of scaled latents (N, C, h, w), as (N, H, W, 3) uint8 on the CPU.

        One picture after another: the arithmetic, and with it each picture, does not depend on N, and neither does
        the memory.
        """
        pictures = []
        for latent in latents:
            scaled = latent[None].to(self.vae.device).float() / self.scaling_factor
            x = self.vae.decode(scaled.to(self.vae.dtype)).sample.float()
            x = (x / 2 + 0.5).clamp(0, 1)
            if not torch.isfinite(x).all():
                raise ModelError(
                    "The VAE made a picture that is not a number.",
                    where=self.source,
                    fix="Use fp32 or bf16 precision; if it stays, the weights of the base or the LoRA are damaged.",
                )
            pictures.append((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
        return torch.cat(pictures)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts: (N, ``max_tokens``, width) in ``dtype``.

        Longer texts are cut at ``max_tokens`` (see ``token_lengths``). Gradients flow where the caller has them on,
        so that a LoRA on the text encoder can be trained.
        """
        embeddings = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = self.tokenizer(
                list(texts[start : start + _TEXTS_AT_ONCE]),
                padding="max_length",
                max_length=self.max_tokens,
                truncation=True,
                return_tensors="pt",
            )
            encoder = self.text_encoder
            # As diffusers does: SD 1.x was trained with the padding in sight.
            mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
            output = encoder(
                tokens.input_ids.to(encoder.device), attention_mask=None if mask is None else mask.to(encoder.device)
            )
            embeddings.append(output.last_hidden_state.to(self.device, self.dtype))
        return torch.cat(embeddings)

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has before any cut, the first and last marks included."""
        return [len(ids) for ids in self.tokenizer(list(texts), truncation=False, verbose=False).input_ids]


def load_base(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    vae: str | None = None,
    weights: WeightChoice = "auto",
) -> StableDiffusion:
    """Load a base.

    Args:
        name: "starter" (the built-in one); a folder in the diffusers layout; one .safetensors or .ckpt file in the
            original layout; or the id of a model on the Hugging Face hub, taken from the local cache, and downloaded
            only where it is not there.
        device: where it shall compute.
        dtype: of the UNet and the text encoder; of the VAE see ``StableDiffusion``.
        vae: a VAE to use instead of the base's own: a file in either layout, or a folder.
        weights: which of the UNet's weights, where the base has them and their moving average (EMA): "auto" and
            "non-ema" take the weights themselves, as the makers of SD 1.5 advise for fine-tuning.

    Raises:
        ModelError: it cannot be found or read, a part is missing or incomplete, it is another architecture, or a
            pickle asks for more than weights (pickles are never run; see ``checkpoint_file``).
    """
    files = find_base(name, vae=vae, weights=weights)
    parts = load_parts(files, dtype)
    sd = StableDiffusion(
        unet=parts.unet,
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        alphas_cumprod=parts.alphas_cumprod,
        prediction_type=str(parts.scheduler_config.get("prediction_type", "epsilon")),
        scheduler_config=parts.scheduler_config,
        source=name,
        weights=parts.weights,
        notes=(*files.notes, *_about_speed(torch.device(device), dtype)),
        device=torch.device(device),
        dtype=dtype,
        originals={},
    )
    return sd.to(device, dtype)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point() and ".lora_" not in name:
            tensor.data = tensor.data.to(dtype)


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name: "auto" (a CUDA GPU, else Apple's, else the CPU), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        RecipeError: not the name of a device.
        DeviceError: this machine or this build of torch has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(
            f'"{name}" is not the name of a device.', fix="Write auto, cpu, cuda, cuda:1 or mps."
        ) from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise DeviceError(
            f'There is no device "{name}" here.',
            fix='Run "lorasmith doctor" to see why, or use device = "auto".',
        )
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of "auto", "fp32", "bf16" or "fp16" on a device.

    "auto" is bfloat16 where the device multiplies it natively (a GPU since Ampere; a CPU with AVX512-BF16 or AMX,
    where it is some three times as fast as float32), else float16 on a GPU and float32 on a CPU.

    Raises:
        RecipeError: no such precision.
        DeviceError: float16 on a CPU, which computes it slowly or not at all.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bf16() else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("A CPU cannot compute in fp16.", fix='Use precision = "auto", "fp32" or "bf16".')
    try:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    except KeyError:
        raise RecipeError(f'"{precision}" is not a precision.', fix="Write auto, fp32, bf16 or fp16.") from None


def computes_slowly(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether ``device`` has to imitate ``dtype``, which is far slower than float32."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not _cpu_multiplies_bf16()


def _about_speed(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    if not computes_slowly(device, dtype):
        return ()
    return (
        "This CPU does not multiply bf16 (it has neither AVX512-BF16 nor AMX) and imitates it, some 30 to 200 times "
        'as slowly as fp32. With precision = "auto" it computes in fp32.',
    )


def _cpu_multiplies_bf16() -> bool:
    # torch asks the processor, but has no public name for the answer yet; without one we say no.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
