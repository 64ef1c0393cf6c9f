"""Captions from an image-to-text model: BLIP, or another of transformers' that needs no question to describe."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from lorasmith.dataset.contents import Listed
from lorasmith.dataset.picture import Picture
from lorasmith.errors import ModelError

BLIP = "Salesforce/blip-image-captioning-large"  # published as safetensors, which the smaller one is not
KINDS = ("blip", "blip-2", "git", "vision-encoder-decoder")
_BATCH = 8  # pictures at once on a GPU; on a CPU that is hardly faster, takes memory, and loses more when stopped
_LONGEST = 60  # tokens of a caption, well under the 77 of a text encoder
_BEAMS = 3
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIX = "Name the folder of a BLIP, GIT or ViT-GPT2 model in the Hugging Face layout, with safetensors weights."


@dataclass(frozen=True)
class Captioner:
    """A loaded image-to-text model. The same pictures in the same batches give the same captions."""

    model: Any
    processor: Any
    tokenizer: Any
    source: str
    device: torch.device
    batch: int = _BATCH
    looks: bool = True
    cheap: bool = False

    @torch.inference_mode()
    def describe(self, listed: Sequence[Listed], pictures: Sequence[Picture | None]) -> list[str]:
        """Return a caption for each picture, uint8 RGB (height, width, 3), in one batch.

        Raises:
            ModelError: the model cannot be run on them.
        """
        images = [Image.fromarray(picture) for picture in pictures if picture is not None]
        try:
            inputs = self.processor(images=images, return_tensors="pt")
            pixels = inputs["pixel_values"].to(self.device, self.model.dtype)
            made = self.model.generate(pixel_values=pixels, max_new_tokens=_LONGEST, num_beams=_BEAMS, do_sample=False)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ModelError(f"The model cannot describe pictures: {error}", where=self.source, fix=_FIX) from error
        texts = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def load_captioner(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Captioner:
    """Load an image-to-text model.

    Args:
        name: "blip", a folder in the Hugging Face layout, or a hub id (owner/name).
        device: where it computes.
        dtype: of its weights; float32 on a CPU.

    Raises:
        ModelError: it is not there and cannot be downloaded, has no safetensors weights, or is no model that
            describes pictures by itself.
    """
    folder = _folder(BLIP if name == "blip" else name)
    kind = _kind(folder, name)
    if kind not in KINDS:
        what = f'A model of type "{kind}" is none that describes pictures without being asked.'
        raise ModelError(what, where=name, fix=f"{_FIX} The types are {', '.join(KINDS)}.")
    if not any(folder.glob("*.safetensors")):
        what = "The model's weights are not safetensors, and pickled ones can run programs."
        raise ModelError(what, where=str(folder), fix='Use "blip", or convert the weights to safetensors.')
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, dtype=dtype, **options)
        if kind == "vision-encoder-decoder":  # an image processor and a tokenizer of different makes
            processor = AutoImageProcessor.from_pretrained(folder, **options)
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        else:
            processor = AutoProcessor.from_pretrained(folder, **options)
            tokenizer = processor.tokenizer
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"The model could not be loaded: {first}", where=str(folder), fix=_FIX) from error
    model = model.to(device).eval().requires_grad_(False)
    called = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name
    chosen = torch.device(device)
    return Captioner(model, processor, tokenizer, called, chosen, 1 if chosen.type == "cpu" else _BATCH)


def _kind(folder: Path, name: str) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "unknown"))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError("There is no model's config.json that can be read.", where=name, fix=_FIX) from error


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(name):
        raise ModelError(f'There is no folder "{name}", and it is no hub id (owner/name).', where=name, fix=_FIX)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    except OSError:  # not in the cache, or only a part of it
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=5))
    except Exception as error:  # the hub's client raises what its transport raises
        raise ModelError(
            f'"{name}" is neither a folder here nor in the cache of the Hugging Face hub, and cannot be downloaded.',
            where=(str(error).strip().splitlines() or [type(error).__name__])[0],
            fix="Check the name and the network, or copy the model's folder to this machine and name that.",
        ) from error
