"""LoRA (Hu et al. 2021): small matrices whose product is added to a base's frozen weights.

For a weight W of shape (out, in) a LoRA holds A (rank, in) and B (out, rank), and the model computes with
W + weight * alpha / rank * B A. A convolution's A is a convolution to ``rank`` channels, and its B one of 1x1.

During training the matrices are layers of their own (``attach``), in float32 whatever the base's dtype: peft's layer
takes its input to float32, adds the two results in float32, and returns the sum in the base layer's dtype. So no
autocast is needed, and none must be on. For generating they are added into the weights (``fuse``), after which a
picture costs no more than the base's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorasmith.errors import LoraError
from lorasmith.model.stable_diffusion import StableDiffusion

_ADAPTER = "default"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
# What kohya's convolution LoRAs change, so that programs which read those find nothing unknown: not the first and
# last convolutions, nor the time embedding.
_OTHERS = (
    "proj_in",
    "proj_out",
    "conv1",
    "conv2",
    "time_emb_proj",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
)
UNET_TARGETS = {
    "attention": _ATTENTION,
    "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
    "all": (*_ATTENTION, *_FEED_FORWARD, *_OTHERS),
}
TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class LoraConfig:
    """What ``attach`` shall add.

    Attributes:
        rank: of each pair of matrices.
        alpha: the LoRA is scaled by alpha / rank.
        dropout: chance that an input of a LoRA layer is dropped in training, 0 to 1.
        targets: which of the UNet's layers: the attention's projections, those and the feed-forward layers, or all
            layers including the convolutions.
        text_encoder: whether the text encoder's attention gets a LoRA too.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Literal["attention", "attention+ff", "all"] = "attention"
    text_encoder: bool = False


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA in memory.

    Attributes:
        tensors: float32 on the CPU, by the keys that diffusers uses: ``unet.<module>.lora_A.weight`` and
            ``lora_B.weight``; those of the text encoder begin with ``text_encoder.text_model.``.
        rank, alpha: of most modules.
        alphas: the alpha of each module that has another one; its rank is seen from its tensors.
        metadata: what its file says of it.
    """

    tensors: dict[str, Tensor]
    rank: int
    alpha: float
    alphas: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules it changes, beginning with ``unet.`` or ``text_encoder.text_model.``."""
        return tuple(key.removesuffix(".lora_A.weight") for key in self.tensors if key.endswith(".lora_A.weight"))

    @property
    def targets(self) -> tuple[str, ...]:
        """The kinds of modules it changes, such as ``to_q``."""
        kinds = (*UNET_TARGETS["all"], *TEXT_ENCODER_TARGETS)
        found = {next((k for k in kinds if m.endswith(f".{k}")), m.rpartition(".")[2]) for m in self.modules}
        return tuple(sorted(found))

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing at all: an untrained LoRA, or one whose training failed."""
        return not any(self.norms().values())

    def pair(self, module: str) -> tuple[Tensor, Tensor]:
        """Return a module's A and B."""
        return self.tensors[f"{module}.lora_A.weight"], self.tensors[f"{module}.lora_B.weight"]

    def scale(self, module: str) -> float:
        """Return a module's alpha / rank."""
        return self.alphas.get(module, self.alpha) / self.pair(module)[0].shape[0]

    def norms(self) -> dict[str, float]:
        """Return the Frobenius norm of each module's change of weight, computed without making the change."""
        norms = {}
        for module in self.modules:
            a, b = (t.flatten(1).double() for t in self.pair(module))
            norms[module] = abs(self.scale(module)) * math.sqrt(max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0))
        return norms

    def check_fits(self, sd: StableDiffusion) -> None:
        """Do nothing if every module of the LoRA is in the base with the right shape.

        Raises:
            LoraError: naming those that are not.
        """
        modules = _modules(sd)
        misfits = [f"{name} ({why})" for name in self.modules if (why := self._misfit(name, modules.get(name)))]
        if misfits or not self.modules:
            raise LoraError(
                f"The LoRA does not fit the base: {len(misfits)} of its {len(self.modules)} modules do not match"
                f"{', such as ' if misfits else ''}{'; '.join(misfits[:5])}.",
                where=sd.source,
                fix="Use the LoRA with a base of the architecture it was trained on.",
            )

    def _misfit(self, name: str, module: nn.Module | None) -> str:
        if module is None:
            return "not in the base"
        a, b = self.pair(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
        rank = a.shape[0]
        want_a, want_b = (rank, *weight.shape[1:]), (weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
        if tuple(a.shape) == want_a and tuple(b.shape) == want_b:
            return ""
        return f"{tuple(b.shape)} x {tuple(a.shape)}, where {want_b} x {want_a} would fit"


def attach(sd: StableDiffusion, config: LoraConfig, seed: int = 0) -> list[nn.Parameter]:
    """Add LoRA layers to the base, and return their weights, which alone require gradients: the UNet's, then the
    text encoder's (``lora_parameters`` tells them apart).

    The weights are float32. A is uniform in +-1 / sqrt(fan in), as in peft, and B is zero, so that the model computes
    what it did; they depend on ``seed`` alone, not on the device, the dtype or the global random state.

    Raises:
        LoraError: there is a LoRA attached already.
    """
    import peft

    if any(_layers(sd)):
        raise LoraError("The base has a LoRA attached already.", where=sd.source, fix="Detach it first.")
    targets = {"unet": UNET_TARGETS[config.targets]}
    if config.text_encoder:
        targets["text_encoder"] = TEXT_ENCODER_TARGETS
    for part, names in targets.items():
        settings = peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(names)
        )
        with torch.random.fork_rng(devices=[]):  # peft draws numbers for weights that are replaced below
            peft.inject_adapter_in_model(settings, getattr(sd, part), adapter_name=_ADAPTER)
    return reset_lora(sd, seed)


def reset_lora(sd: StableDiffusion, seed: int) -> list[nn.Parameter]:
    """Give the attached LoRA the weights that ``attach`` gave it with that seed, and return them."""
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for _, layer in _layers(sd):
        a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        bound = 1 / math.sqrt(a[0].numel())
        a.data = torch.empty(a.shape).uniform_(-bound, bound, generator=generator).to(a.device)
        b.data = torch.zeros(b.shape, device=b.device)
        parameters += [a, b]
    return parameters


def lora_parameters(sd: StableDiffusion) -> dict[str, list[nn.Parameter]]:
    """Return the attached LoRA's weights of each part ("unet", "text_encoder"), for learning rates of their own."""
    parts: dict[str, list[nn.Parameter]] = {"unet": [], "text_encoder": []}
    for name, layer in _layers(sd):
        parts[name.partition(".")[0]] += [layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]
    return parts


def lora_state(sd: StableDiffusion) -> Lora:
    """Return a copy of the attached LoRA, on the CPU.

    Raises:
        LoraError: there is none.
    """
    tensors, alphas = {}, {}
    for name, layer in _layers(sd):
        for matrix in ("lora_A", "lora_B"):
            weight = getattr(layer, matrix)[_ADAPTER].weight
            tensors[f"{name}.{matrix}.weight"] = weight.detach().to("cpu", torch.float32, copy=True)
        alphas[name] = float(layer.lora_alpha[_ADAPTER])
    if not tensors:
        raise LoraError("The base has no LoRA attached.", where=sd.source, fix="Attach one first.")
    return make_lora(tensors, alphas)


def make_lora(tensors: dict[str, Tensor], alphas: dict[str, float], metadata: dict[str, str] | None = None) -> Lora:
    """Return the Lora of whole pairs of tensors and the alpha of each module; a module without one has alpha = rank."""
    ranks = {k.removesuffix(".lora_A.weight"): t.shape[0] for k, t in tensors.items() if k.endswith(".lora_A.weight")}
    whole = {module: alphas.get(module, float(rank)) for module, rank in ranks.items()}
    alpha = Counter(whole.values()).most_common(1)[0][0]
    return Lora(
        tensors=tensors,
        rank=Counter(ranks.values()).most_common(1)[0][0],
        alpha=alpha,
        alphas={module: value for module, value in whole.items() if value != alpha},
        metadata=dict(metadata or {}),
    )


@torch.no_grad()
def set_lora_weights(sd: StableDiffusion, lora: Lora) -> None:
    """Copy a LoRA into the attached one, alpha included.

    Raises:
        LoraError: it has other modules or other ranks than the attached one.
    """
    layers = dict(_layers(sd))
    pairs = {name: (layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight) for name, layer in layers.items()}
    same = set(pairs) == set(lora.modules) and all(
        own.shape == new.shape for name in pairs for own, new in zip(pairs[name], lora.pair(name))
    )
    if not same:
        raise LoraError(
            f"The LoRA (rank {lora.rank}, {len(lora.modules)} modules) is not of the form of the attached one "
            f"({len(pairs)} modules).",
            where=sd.source,
            fix="Continue a training with the recipe it began with.",
        )
    for name, layer in layers.items():
        for own, new in zip(pairs[name], lora.pair(name)):
            own.copy_(new)
        layer.lora_alpha[_ADAPTER] = lora.alphas.get(name, lora.alpha)
        layer.set_scale(_ADAPTER, 1.0)


def detach(sd: StableDiffusion) -> None:
    """Remove the attached LoRA's layers; the base is as it was. Without one, do nothing."""
    for name, layer in list(_layers(sd)):
        part, _, path = name.partition(".")
        root = getattr(sd, part)
        parent, _, child = _own_path(root, path).rpartition(".")
        setattr(root.get_submodule(parent), child, layer.get_base_layer())
    for _, part in _parts(sd):
        if hasattr(part, "peft_config"):
            del part.peft_config


@contextmanager
def without_lora(sd: StableDiffusion) -> Iterator[None]:
    """For the block, let the base compute as if the attached LoRA were not there."""
    layers = [layer for _, layer in _layers(sd)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def fuse(sd: StableDiffusion, lora: Lora, weight: float = 1.0) -> None:
    """Add ``weight`` times the LoRA to the base's weights, computed in float32.

    Several LoRAs may be fused one after another. The first time, a copy of each weight that changes is kept on the
    CPU for ``restore``: the memory of the targeted layers.

    Raises:
        LoraError: it does not fit; nothing was changed.
    """
    lora.check_fits(sd)
    modules = _modules(sd)
    for name in lora.modules:
        own: Tensor = modules[name].weight  # type: ignore[assignment]
        if name not in sd.originals:
            sd.originals[name] = own.detach().to("cpu", copy=True)
        a, b = (t.to(own.device, torch.float32).flatten(1) for t in lora.pair(name))
        own.copy_(own.float() + weight * lora.scale(name) * (b @ a).view(own.shape))


@torch.no_grad()
def restore(sd: StableDiffusion) -> None:
    """Give the base its own weights back, exactly, after any number of ``fuse``."""
    modules = _modules(sd)
    for name, original in sd.originals.items():
        modules[name].weight.copy_(original)  # type: ignore[operator]
    sd.originals.clear()


def _parts(sd: StableDiffusion) -> Iterator[tuple[str, Any]]:
    yield "unet", sd.unet
    yield "text_encoder", sd.text_encoder


def _key_path(part: str, path: str) -> str:
    # transformers 5 dropped a level of CLIPTextModel. The keys keep it: diffusers removes it where it is not there,
    # and older programs need it.
    if part == "text_encoder" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    return f"{part}.{path}"


def _own_path(root: nn.Module, path: str) -> str:
    return path if hasattr(root, "text_model") else path.removeprefix("text_model.")


def _layers(sd: StableDiffusion) -> Iterator[tuple[str, Any]]:
    """Yield the attached LoRA layers by the names of their keys, in the model's order."""
    from peft.tuners.lora import LoraLayer

    for part, model in _parts(sd):
        for path, module in model.named_modules():
            if isinstance(module, LoraLayer):
                yield _key_path(part, path), module


def _modules(sd: StableDiffusion) -> dict[str, nn.Module]:
    """Return the base's linear and convolution layers by the names of their keys, with or without LoRA layers."""
    return {
        _key_path(part, path.removesuffix(".base_layer")): module
        for part, model in _parts(sd)
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and ".lora_" not in path
    }
