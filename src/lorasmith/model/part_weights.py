"""The weights of one part of a base, where they lie in files of any layout, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.cache import remembered
from lorasmith.errors import ModelError
from lorasmith.model.checkpoint_file import Checkpoint
from lorasmith.model.stored_tensor import count_not_finite

_TEXT_LEVEL = "text_model."  # a level of names that transformers 5 dropped
_SHOWN = 3


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in which file, under which name, and the shape that its module gives it."""

    checkpoint: Checkpoint
    key: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Read the tensor, in the file's dtype. A 1x1 convolution of the file may be a linear layer of the module."""
        tensor = self.checkpoint.read(self.key)
        return tensor if tuple(tensor.shape) == self.shape else tensor.reshape(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it has in the file."""
        return self.checkpoint.tensors[self.key].dtype


@dataclass(frozen=True)
class PartWeights:
    """The weights of a UNet, a VAE or a text encoder.

    Attributes:
        part: "unet", "vae" or "text_encoder".
        places: by the names that diffusers and transformers give the tensors; those of a text encoder begin with
            "text_model.".
        settings: of the module, what shapes do not tell and results depend on.
    """

    part: str
    places: Mapping[str, Place]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights lie in."""
        return tuple(dict.fromkeys(place.checkpoint.path for place in self.places.values()))

    @property
    def where(self) -> str:
        """The files, for messages."""
        return ", ".join(map(str, self.files))

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor by name, in the files' order and dtype.

        Raises:
            ModelError: a tensor holds a NaN or an infinity, or a file cannot be read.
        """
        for name, place in self.places.items():
            tensor = place.read()
            # One sum finds nearly every sound tensor sound; it may overflow, so only a count condemns.
            if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
                _refuse_not_finite(place, tensor)
            yield name, tensor

    def sha256(self) -> str:
        """Return a hash over every tensor and the settings, whatever the layout of the files.

        Reads all of them, once: the hash of files that did not change since is remembered.
        """
        keys = hashlib.sha256(json.dumps([place.key for place in self.places.values()]).encode()).hexdigest()
        settings = json.dumps(dict(self.settings), sort_keys=True, default=str)
        return remembered(f"{self.part} {keys} {settings}", self.files, self.content_sha256)

    def content_sha256(self) -> str:
        """Return the same, having read every weight now."""
        digest = hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True, default=str).encode())
        for name in sorted(self.places):
            tensor = self.places[name].read().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _refuse_not_finite(place: Place, tensor: Tensor) -> None:
    if count := count_not_finite(tensor):
        raise ModelError(
            f'The weights are not finite: "{place.key}" holds {count:,} NaN or infinite numbers of {tensor.numel():,}.',
            where=str(place.checkpoint.path),
            fix="Get the base again from where it came, or use another; this one was damaged when it was made.",
        )


def fill(module: nn.Module, weights: PartWeights, dtype: torch.dtype) -> None:
    """Give a module whose parameters are on the meta device its weights, in ``dtype``, frozen, ready to compute.

    The memory needed at the peak is the module's own and one tensor's.

    Raises:
        ModelError: a weight is missing, of the wrong shape, unknown to the module, or not finite in ``dtype``.
    """
    wanted = {_canonical(name, weights.part): name for name, _ in module.named_parameters()}
    shapes = {_canonical(name, weights.part): tuple(p.shape) for name, p in module.named_parameters()}
    _check_names(weights, shapes)
    state = {}
    for name, tensor in weights.read():
        cast = tensor.to(dtype)
        if dtype == torch.float16 and tensor.dtype != dtype and not torch.isfinite(cast.sum(dtype=torch.float32)):
            _check_range(weights.places[name], cast)
        state[wanted[name]] = cast
    module.load_state_dict(state, assign=True, strict=False)  # the names were checked; buffers are the module's own
    module.requires_grad_(False).eval()


def _canonical(name: str, part: str) -> str:
    return _TEXT_LEVEL + name if part == "text_encoder" and not name.startswith(_TEXT_LEVEL) else name


def _check_names(weights: PartWeights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = sorted(shapes.keys() - weights.places.keys())
    unknown = sorted(weights.places.keys() - shapes.keys())
    wrong = [
        f"{name} {list(place.shape)} instead of {list(shapes[name])}"
        for name, place in weights.places.items()
        if name in shapes and place.shape != shapes[name]
    ]
    problems = [
        f"{len(found)} {what}, such as {', '.join(found[:_SHOWN])}"
        for found, what in ((missing, "missing"), (wrong, "of the wrong shape"), (unknown, "unknown"))
        if found
    ]
    if problems:
        raise ModelError(
            f"The {weights.part.replace('_', ' ')}'s weights do not fit its settings: {'; '.join(problems)}.",
            where=weights.where,
            fix="Copy the base again; its settings and weights do not belong together, or a part of it is missing.",
        )


def _check_range(place: Place, cast: Tensor) -> None:
    if count := count_not_finite(cast):
        raise ModelError(
            f'{count:,} numbers of "{place.key}" are too large for fp16.',
            where=str(place.checkpoint.path),
            fix="Use bf16 or fp32 precision with this base.",
        )


def canonical_places(part: str, found: Mapping[str, tuple[Checkpoint, str]]) -> dict[str, Place]:
    """Return the places of tensors by names of diffusers' layout, old ones brought up to date.

    Args:
        found: the file and the key in it of each name.
    """
    places = {}
    for name, (checkpoint, key) in found.items():
        if name.endswith(".position_ids"):  # a buffer that older versions of transformers kept
            continue
        shape = checkpoint.tensors[key].shape
        ours = _up_to_date(part, name)
        squeeze = part == "vae" and ".attentions." in ours and len(shape) == 4 and shape[2:] == (1, 1)
        places[ours] = Place(checkpoint, key, shape[:2] if squeeze else shape)
    return places


# The names of a VAE's attention until diffusers 0.17.
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _up_to_date(part: str, name: str) -> str:
    if part == "vae" and ".attentions." in name:
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(old, new)
    return _canonical(name, part)


def open_files(part: str, files: Sequence[Checkpoint], settings: Mapping[str, Any]) -> PartWeights:
    """Return the weights in a part's files of the diffusers layout; several are shards of one.

    Raises:
        ModelError: a name occurs in two files.
    """
    found: dict[str, tuple[Checkpoint, str]] = {}
    for checkpoint in files:
        for key in checkpoint.tensors:
            if key in found:
                raise ModelError(
                    f'Two files hold the weight "{key}".',
                    where=f"{found[key][0].path}, {checkpoint.path}",
                    fix="Copy the base's folder again; files of two versions are mixed in it.",
                )
            found[key] = (checkpoint, key)
    return PartWeights(part, canonical_places(part, found), settings)
