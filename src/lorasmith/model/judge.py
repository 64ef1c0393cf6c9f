"""A CLIP model that says which words fit a picture: the starter's small judge, or any CLIP folder the user names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from lorasmith.errors import ModelError

# CLIP's own normalisation (Radford et al. 2021), used where a folder states none.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def prepare(pictures: NDArray[np.uint8], size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return pictures as CLIP wants them: (N, H, W, 3) uint8 -> (N, 3, size, size) float32, resized and normalised."""
    if pictures.shape[1:3] != (size, size):
        pictures = np.stack(
            [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in pictures]
        )
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div(255)
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def eight_views(x: Tensor, by: int) -> list[Tensor]:
    """Return pictures (N, C, H, W) moved by ``by`` pixels to each of four corners, plain and mirrored."""
    height, width = x.shape[2:]
    wide = torch.nn.functional.pad(x, (by,) * 4, mode="reflect")
    moved = [wide[:, :, top : top + height, left : left + width] for top in (0, 2 * by) for left in (0, 2 * by)]
    return [*moved, *(view.flip(3) for view in moved)]


@dataclass
class Judge:
    """A loaded CLIP. Embeddings are unit vectors; a picture fits the text with the greatest dot product."""

    clip: Any
    tokenizer: Any
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the texts' embeddings, float32 (N, D), of length one."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        out = self.clip.text_model(input_ids=tokens.input_ids.to(self.device)).pooler_output
        return torch.nn.functional.normalize(self.clip.text_projection(out).float(), dim=-1)

    @torch.inference_mode()
    def embed_pictures(self, pictures: NDArray[np.uint8], batch: int = 64, *, views: bool = False) -> Tensor:
        """Return the pictures' embeddings, float32 (N, D), of length one.

        Args:
            pictures: uint8 (N, H, W, 3).
            batch: pictures at once.
            views: take the mean over eight views of each picture (see ``eight_views``), at eight times the cost. A
                small CLIP sees the same item otherwise where the borders of its patches cut it otherwise.
        """
        parts = []
        for start in range(0, len(pictures), batch):
            x = prepare(pictures[start : start + batch], self.size, self.mean, self.std).to(self.device)
            seen = eight_views(x, self.clip.config.vision_config.patch_size // 4) if views else [x]
            parts.append(torch.stack([self._embed(view) for view in seen]).mean(0))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def _embed(self, x: Tensor) -> Tensor:
        seen = self.clip.visual_projection(self.clip.vision_model(pixel_values=x).pooler_output).float()
        return torch.nn.functional.normalize(seen, dim=-1)

    def embed_choices(self, choices: Mapping[str, Sequence[str]]) -> Tensor:
        """Return a unit vector for each choice, (C, D): the mean over its wordings (Radford et al. 2021, ensembles)."""
        means = torch.stack([self.embed_texts(wordings).mean(0) for wordings in choices.values()])
        return torch.nn.functional.normalize(means, dim=-1)

    def probabilities(self, pictures: NDArray[np.uint8], choices: Mapping[str, Sequence[str]]) -> NDArray[np.float32]:
        """Return how well each choice fits each picture, float32 (N, C), rows summing to one.

        Args:
            pictures: uint8 (N, H, W, 3).
            choices: for each name its wordings, such as ``{"axe": ("an axe", "a photo of an axe"), ...}``.
        """
        logits = self.embed_pictures(pictures) @ self.embed_choices(choices).T * self.clip.logit_scale.exp().float()
        return np.asarray(logits.softmax(-1).detach().cpu().numpy(), dtype=np.float32)


def load_judge(folder: Path, device: str | torch.device = "cpu") -> Judge:
    """Load a CLIP from a Hugging Face folder (``config.json``, safetensors weights, a tokenizer).

    Raises:
        ModelError: the folder is not there or holds no CLIP.
    """
    fix = "name a folder that holds a CLIP model in the Hugging Face layout, with safetensors weights"
    if not (folder / "config.json").is_file():
        raise ModelError("The judge was not found.", where=str(folder), fix=fix)
    try:
        clip = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"The judge could not be loaded: {error}", where=str(folder), fix=fix) from error
    stated = folder / "preprocessor_config.json"
    config = json.loads(stated.read_text(encoding="utf-8")) if stated.is_file() else {}
    clip = clip.to(device).eval().requires_grad_(False)
    return Judge(
        clip, tokenizer, clip.config.vision_config.image_size, config.get("image_mean", _MEAN),
        config.get("image_std", _STD), torch.device(device),
    )  # fmt: skip
