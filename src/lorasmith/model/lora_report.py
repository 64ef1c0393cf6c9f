"""Measure a LoRA in its file, of any base and any program that writes plain pairs of matrices, one pair at a time."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lorasmith.model.checkpoint_file import Checkpoint
from lorasmith.model.lora import TEXT_ENCODER_TARGETS, UNET_TARGETS

_ADAPTER_METADATA = "lora_adapter_metadata"
_HALF = re.compile(
    r"(?P<module>.+?)(?P<form>\.lora_linear_layer|\.lora|_lora)?"
    r"\.(?:(?P<a>lora_A|lora_down|down)|(?P<b>lora_B|lora_up|up))(?:\.default)?\.weight"
)
_UNET_BLOCK = re.compile(r"(down|up|input|output)_blocks[._](\d+)|(mid_block|middle_block)")
_OTHER_BLOCK = re.compile(r"(double_blocks|single_blocks|joint_blocks|single_transformer_blocks|transformer_blocks)")
_MOST = 1 << 24  # numbers of a product; a LoRA of rank 4,096
_KINDS = (*UNET_TARGETS["all"], *TEXT_ENCODER_TARGETS, "fc1", "fc2")


@dataclass(frozen=True)
class BlockNorm:
    """How much a LoRA changes one block.

    Attributes:
        block: such as "unet down_blocks.1" or "text encoder".
        modules: how many layers of it are changed.
        norm: the Frobenius norm of all its changes together, |alpha / rank * B A|.
        largest: the largest norm of a single layer's change.
    """

    block: str
    modules: int
    norm: float
    largest: float


@dataclass(frozen=True)
class LoraReport:
    """What a LoRA is and how much it changes.

    Attributes:
        modules: how many layers it changes.
        ranks, alphas: how many layers have each; an alpha that is nowhere stated counts as the rank.
        alpha_stated: whether the file says its alphas at all.
        targets: the kinds of layers, with how many of each.
        blocks: its norms, in the order of the file.
        norm: of everything together.
        zero_modules: how many layers it leaves as they are.
        broken: the names of layers whose two matrices do not belong together, or are not finite.
    """

    modules: int = 0
    ranks: Mapping[int, int] = field(default_factory=dict)
    alphas: Mapping[float, int] = field(default_factory=dict)
    alpha_stated: bool = False
    targets: Mapping[str, int] = field(default_factory=dict)
    blocks: tuple[BlockNorm, ...] = ()
    norm: float = 0.0
    zero_modules: int = 0
    broken: tuple[str, ...] = ()

    @property
    def recipe_targets(self) -> str:
        """What a recipe's ``lora.targets`` calls the layers of the UNet that it changes, or ""."""
        unet = self.targets.keys() - {*TEXT_ENCODER_TARGETS, "fc1", "fc2"}
        return next((name for name, kinds in UNET_TARGETS.items() if unet == set(kinds)), "")

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing at all."""
        return bool(self.modules) and self.zero_modules == self.modules


def measure_lora(checkpoint: Checkpoint) -> Generator[tuple[int, int], None, LoraReport]:
    """Measure a LoRA, saying after each layer how many of how many are done.

    The norm of a change needs no product of its size: |B A|^2 is the sum of (B^T B) * (A A^T).

    Raises:
        ModelError: the file cannot be read any more.
    """
    pairs: dict[str, dict[str, str]] = defaultdict(dict)
    for key in checkpoint.tensors:
        if found := _HALF.fullmatch(key):
            pairs[_module(found)]["A" if found["a"] else "B"] = key
    whole = {module: (halves["A"], halves["B"]) for module, halves in pairs.items() if len(halves) == 2}
    broken = [module for module, halves in pairs.items() if len(halves) < 2]
    alphas, ranks, norms = _alphas(checkpoint, whole), {}, {}
    for number, (module, (key_a, key_b)) in enumerate(whole.items()):
        a, b = checkpoint.read(key_a), checkpoint.read(key_b)
        ranks[module] = rank = a.shape[0] if a.ndim else 0
        norm = _norm(a, b) * abs(alphas.get(module, rank)) / rank if _fits(a, b) else math.nan
        if math.isfinite(norm):
            norms[module] = norm
        else:
            broken.append(module)
        yield number + 1, len(whole)
    kinds = Counter(_kind(module) for module in whole)
    return LoraReport(
        modules=len(whole),
        ranks=_counted(ranks.values()),
        alphas=_counted(alphas.get(module, float(rank)) for module, rank in ranks.items()),
        alpha_stated=bool(alphas),
        targets=dict(sorted(kinds.items())),
        blocks=_blocks(norms),
        norm=math.hypot(*norms.values()),
        zero_modules=sum(norm == 0 for norm in norms.values()),
        broken=tuple(broken),
    )


def _module(found: re.Match[str]) -> str:
    module = found["module"]
    if found["form"] == "_lora":  # diffusers of 2023: "attn1.processor.to_q_lora.down.weight"
        return module.replace(".processor.", ".").replace("to_out", "to_out.0")
    return module


def _fits(a: Tensor, b: Tensor) -> bool:
    return a.ndim in (2, 4, 5) and b.ndim == a.ndim and 0 < a.shape[0] == b.shape[1] and math.prod(b.shape[2:]) == 1


def _norm(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    rank, size = a.shape[0], a.shape[1] * b.shape[0]
    if min(rank * rank, size) > _MOST or not (a.isfinite().all() and b.isfinite().all()):
        return math.nan
    if rank * rank > size:
        return float((b @ a).norm())
    return math.sqrt(max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0))


def _alphas(checkpoint: Checkpoint, modules: Mapping[str, Any]) -> dict[str, float]:
    """Return the alphas that the file states: as tensors, or in PEFT's settings among the metadata."""
    alphas = {}
    settings = _settings(checkpoint.metadata.get(_ADAPTER_METADATA, ""))
    for module, (key_a, _) in modules.items():
        stored = checkpoint.tensors.get(f"{module}.alpha")
        part, _, rest = module.partition(".")
        if stored is not None and stored.numel == 1:
            alphas[module] = float(checkpoint.read(stored.name).double())
        elif isinstance(stated := settings.get(f"{part}.lora_alpha"), (int, float)):
            own = _patterned(settings.get(f"{part}.alpha_pattern"), rest.removeprefix("text_model."))
            alphas[module] = float(stated if own is None else own)
            if settings.get(f"{part}.use_rslora"):
                alphas[module] *= checkpoint.tensors[key_a].shape[0] ** 0.5
    return alphas


def _settings(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _patterned(patterns: Any, path: str) -> float | None:
    """Return the alpha that PEFT's alpha_pattern gives to a module; a name counts for every module that ends in it."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if isinstance(value, (int, float)) and (path == pattern or path.endswith(f".{pattern}")):
            return float(value)
    return None


def _counted(values: Iterable[Any]) -> dict[Any, int]:
    return dict(Counter(values).most_common())


def _kind(module: str) -> str:
    for kind in _KINDS:
        if module.endswith((f".{kind}", f"_{kind.replace('.', '_')}")):
            return kind
    return re.split(r"[._]\d+[._]", module)[-1] if re.search(r"[._]\d+[._]", module) else module.rpartition(".")[2]


def _part(module: str) -> str:
    if re.match(r"(lora_te2_|text_encoder_2\.)", module):
        return "text encoder 2"
    if re.match(r"(lora_te\d?_|text_encoder\.|te\.)", module):
        return "text encoder"
    return "unet" if re.search(r"(down|up|input|output)_blocks|mid(dle)?_block", module) else "transformer"


def _blocks(norms: Mapping[str, float]) -> tuple[BlockNorm, ...]:
    groups: dict[str, list[float]] = defaultdict(list)
    for module, norm in norms.items():
        part, name = _part(module), ""
        if part == "unet" and (found := _UNET_BLOCK.search(module)):
            name = found[3] or f"{found[1]}_blocks.{found[2]}"
        elif part == "transformer" and (found := _OTHER_BLOCK.search(module)):
            name = found[1]
        groups[f"{part} {name}".strip()].append(norm)
    return tuple(BlockNorm(block, len(found), math.hypot(*found), max(found)) for block, found in groups.items())
