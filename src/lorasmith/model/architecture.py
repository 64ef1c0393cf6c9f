"""What a file of weights is, told from the names and shapes of its tensors alone.

    identify({name: tensor.shape for name, tensor in checkpoint.tensors.items()})

A family is told by how it is built (which blocks it has, whether a projection is a convolution or a linear layer)
before any width is looked at, so that a small model in the layout of Stable Diffusion 1.x counts as one. The names
are those of the CompVis and Stability repositories ("original"), of diffusers and transformers ("diffusers"), of
sd-scripts ("kohya") and of PEFT ("peft"). What makes each family is in ``architecture_marks``. Nothing here imports
torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lorasmith.errors import ModelError
from lorasmith.model.architecture_marks import (
    SD1,
    SD2,
    SDXL,
    Shape,
    lora_family,
    lora_form,
    other_base,
    other_file,
    unet_family,
)

Kind = Literal[
    "base", "lora", "vae", "unet", "text encoder", "controlnet", "embedding",
    "adapter", "hypernetwork", "upscaler", "other", "unknown",
]  # fmt: skip
Layout = Literal["original", "diffusers", "kohya", "peft", ""]

_UNET = "model.diffusion_model."
_EMA_UNET = "model_ema.diffusion_model"  # what follows is written without dots
_NOUNS = {"lora": "LoRA", "vae": "VAE", "unet": "UNet", "controlnet": "ControlNet", "embedding": "textual inversion"}
_CHOOSE = f"Choose a {SD1} base: a folder in the diffusers layout, or one .safetensors or .ckpt file."
_FIXES = {
    "lora": "Give the base that it was made for, and this file with --lora.",
    "vae": "Give it as the recipe's `vae` (--vae), beside a whole base.",
    "unet": "Give the whole base, its folder or file: it has a VAE and a text encoder too.",
    "text encoder": "Give the whole base, its folder or file: it has a UNet and a VAE too.",
    "unknown": f"{_CHOOSE} `lorasmith inspect` shows what is in a file.",
}


@dataclass(frozen=True)
class Architecture:
    """What a file of weights is.

    Attributes:
        kind: what it is for.
        name: its family, such as "Stable Diffusion 1.x" or "SDXL"; for a LoRA that of the base it belongs to.
        layout: how its tensors are named; "" where that is not known, or where there is only one way.
        supported: whether lorasmith can use it as what it is. A supported VAE or LoRA is still no base: see
            ``is_base`` and ``refusal``.
        parts: of a base in the original layout, which of "unet", "vae", "text encoder" and "ema" are there.
        noun: the word for it where its kind is not exact, such as "LoHa" for a "lora"; "" otherwise.
        note: what else is worth saying about it, as one sentence, or "".
    """

    kind: Kind
    name: str
    layout: Layout = ""
    supported: bool = False
    parts: tuple[str, ...] = ()
    noun: str = ""
    note: str = ""

    @property
    def is_base(self) -> bool:
        """Whether it is a base of a supported family; its VAE or text encoder may still be missing."""
        return self.kind == "base" and self.supported

    def __str__(self) -> str:
        if self.kind == "unknown":
            return "model of no known kind"
        noun = self.noun or _NOUNS.get(self.kind, "" if self.kind == "other" else self.kind)
        return self.name if self.name.endswith(noun) else f"{self.name} {noun}"

    def refusal(self, where: str) -> ModelError:
        """Return the error that says what this is, instead of a base that can be used, and what to do with it."""
        what = f"This is {self.phrase}{'' if self.kind == 'base' else ', not a base'}"
        known = self.supported or self.kind == "unknown"
        return ModelError(
            f"{what}." if self.supported else f"{what}; lorasmith supports {SD1} today.",
            where=where,
            fix=_FIXES.get(self.kind, _CHOOSE) if known else _CHOOSE,
        )

    @property
    def phrase(self) -> str:
        """What it is with its article: "an SDXL base", "a Stable Diffusion 1.x LoRA"."""
        text = str(self)
        # Letters that are spelled out count as they are spoken: an SDXL, an LTX; but a UNet.
        return f"{'an' if re.match(r'[AEIOaeio]|[FHLMNRSX][A-Z]', text) else 'a'} {text}"


def identify(shapes: Mapping[str, Shape]) -> Architecture:
    """Return what a file of weights is, from its tensors' names and shapes."""
    if noun := lora_form(shapes):
        return _lora(shapes, noun)
    for look in (_original_base, _controlnet, _diffusers_unet, _bare_unet, _listed, _vae, _text_encoder):
        if (found := look(shapes)) is not None:
            return found
    return Architecture("unknown", "unknown")


def _lora(shapes: Mapping[str, Shape], noun: str) -> Architecture:
    name = lora_family(shapes)
    layout: Layout = "diffusers"
    if any(key.startswith("lora_") for key in shapes):
        layout = "kohya"
    elif any(".lora_A." in key or ".lora_magnitude_vector" in key for key in shapes):
        layout = "peft"
    supported = noun == "LoRA" and name == SD1
    note = "" if noun == "LoRA" else f"lorasmith reads plain LoRAs, no {noun}."
    return Architecture("lora", name, layout, supported, noun="" if noun == "LoRA" else noun, note=note)


def _inside(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Shape]:
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _original_base(shapes: Mapping[str, Shape]) -> Architecture | None:
    """Tell a file that holds a UNet or transformer under ``model.diffusion_model.``, or its moving average."""
    unet, ema = _inside(shapes, _UNET), _inside(shapes, _EMA_UNET)
    if any(name.startswith("control_model.") for name in shapes):
        return _controlnet(shapes)
    if not unet and not ema:
        return None
    held = {
        "unet": bool(unet),
        "vae": any(name.startswith(("first_stage_model.", "vae.")) for name in shapes),
        "text encoder": any(
            name.startswith(("cond_stage_model.", "conditioner.", "text_encoders.")) for name in shapes
        ),
        "ema": bool(ema),
    }
    parts = tuple(part for part, there in held.items() if there)
    weights = unet or ema
    if any(name.startswith("input_blocks") for name in weights):
        family = unet_family(weights, shapes)
        return Architecture("base", family.name, "original", family.supported, parts, note=family.note)
    if name := other_base(weights):
        return Architecture("base", name, "original", parts=parts)
    return Architecture("unknown", "unknown", parts=parts)


def _diffusers_unet(shapes: Mapping[str, Shape]) -> Architecture | None:
    if "conv_in.weight" not in shapes or not any(re.match(r"down_blocks\.\d+\.resnets\.", name) for name in shapes):
        return None
    if not any(name.startswith("time_embedding.") for name in shapes):
        return None
    family = unet_family(shapes, {})
    return Architecture("unet", family.name, "diffusers", family.supported, note=family.note)


def _bare_unet(shapes: Mapping[str, Shape]) -> Architecture | None:
    """Tell a UNet in the original layout whose names lack their prefix, as ComfyUI's "unet" files have them."""
    unet = _inside(shapes, "diffusion_model.") or shapes
    if not any(name.startswith("input_blocks.0.0.") for name in unet):
        return None
    family = unet_family(unet, {})
    return Architecture("unet", family.name, "original", note=family.note)


def _controlnet(shapes: Mapping[str, Shape]) -> Architecture | None:
    original = _inside(shapes, "control_model.") or _inside(shapes, _UNET) or shapes
    ours = any(name.startswith(("input_hint_block.", "zero_convs.", "lora_controlnet")) for name in original)
    theirs = any(name.startswith(("controlnet_cond_embedding.", "controlnet_down_blocks.")) for name in shapes)
    if not ours and not theirs:
        return None
    if any("motion_modules." in name for name in shapes):
        return Architecture("controlnet", "AnimateDiff SparseCtrl", noun="SparseCtrl")
    name = unet_family(shapes if theirs else original, {}).name.partition(" inpainting")[0]
    name = name if name in (SD1, SD2, SDXL) else "Stable Diffusion"
    return Architecture("controlnet", name, "diffusers" if theirs else "original")


def _listed(shapes: Mapping[str, Shape]) -> Architecture | None:
    if {"text_model.embeddings.token_embedding.weight", "visual_projection.weight"} <= shapes.keys():
        return Architecture("other", "CLIP of pictures and texts", "diffusers")
    if found := other_file(shapes):
        kind, name, noun = found
        return Architecture(kind, name, noun=noun)  # type: ignore[arg-type]
    if name := other_base(shapes) or other_base(_inside(shapes, "net.")):
        return Architecture("base", name)
    return None


def _vae(shapes: Mapping[str, Shape]) -> Architecture | None:
    """Tell an autoencoder in either layout, with or without the prefix it has inside a whole file."""
    vae = _inside(shapes, "first_stage_model.") or _inside(shapes, "vae.") or dict(shapes)
    halves = [half for half in ("encoder", "decoder") if f"{half}.conv_in.weight" in vae]
    layout: Layout = ""
    if any(re.match(r"(en|de)coder\.(down|up|mid)\.", name) for name in vae):
        layout = "original"
    elif any(re.match(r"(en|de)coder\.(down_blocks|up_blocks|mid_block)\.", name) for name in vae):
        layout = "diffusers"
    if not halves or not layout:
        return None
    conv = vae[f"{halves[-1]}.conv_in.weight"]
    latent = vae.get("decoder.conv_in.weight", (0, 0))
    if len(conv) == 5 or any(re.search(r"time_(stack|mixer|mix_conv)|temporal", name) for name in vae):
        return Architecture("vae", "video", layout)
    if "quantize.embedding.weight" in vae:
        return Architecture("vae", "VQ", layout)
    if "post_quant_conv.weight" not in vae:
        return Architecture("vae", "SD3 or Flux", layout, note=f"Its latents have {latent[1]} channels.")
    if len(halves) == 1:
        return Architecture("vae", f"Stable Diffusion, {halves[0]} only", layout, note="Half of it is missing.")
    note = f"Its latents have {latent[1]} channels. The VAEs of SD 1.x, 2.x and SDXL have the same names and shapes."
    return Architecture("vae", "Stable Diffusion", layout, supported=True, note=note)


def _text_encoder(shapes: Mapping[str, Shape]) -> Architecture | None:
    """Tell a text encoder that is alone in its file."""
    text = _inside(shapes, "cond_stage_model.")
    layout: Layout = "original" if text else "diffusers"
    text = _inside(text or shapes, "transformer.text_model.") or _inside(text, "transformer.") or text or dict(shapes)
    bare = {name.removeprefix("text_model."): shape for name, shape in text.items()}
    if (table := bare.get("embeddings.token_embedding.weight")) and len(table) == 2:
        name = {768: "CLIP ViT-L", 1024: "CLIP ViT-H (SD 2.x)", 1280: "CLIP ViT-bigG (SDXL)"}.get(table[1], "CLIP")
        return Architecture("text encoder", name, layout, table[1] not in (1024, 1280))
    if any(re.search(r"(^|\.)transformer\.resblocks\.\d+\.attn\.in_proj_weight$", name) for name in text):
        return Architecture("text encoder", "OpenCLIP", "original")
    if any(re.search(r"(^|\.)block\.\d+\.layer\.\d+\.SelfAttention\.q\.weight$", name) for name in text):
        return Architecture("text encoder", "T5", "diffusers")
    if any(re.search(r"(^|\.)layers\.\d+\.(self_attn|attention)\.(q_proj|wq)\.weight$", name) for name in text):
        return Architecture("other", "language model")
    return None
