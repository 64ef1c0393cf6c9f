"""The marks by which families of models are told: names of tensors that only they have. See ``architecture``.

Checked against the key tables of diffusers (loaders/single_file_utils.py) and the models' own repositories. The marks
are regular expressions searched in the list of names, one a line; the first that is found counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

SD1 = "Stable Diffusion 1.x"
SD2 = "Stable Diffusion 2.x"
SDXL = "SDXL"

# Transformers and other bases that are no UNet of Stable Diffusion's kind.
_OTHER_BASES = (
    (r"^single_stream_modulation\.", "Flux.2"),
    (r"^early_stream_modulations\.", "Flux.3"),
    (r"^distilled_guidance_layer\.", "Chroma"),
    (r"^txt_in\.individual_token_refiner\.|^context_embedder\.token_refiner\.", "HunyuanVideo"),
    (r"^double_stream_blocks\.", "HiDream"),
    (r"^double_layers\.\d+\.attn\.w2q\.|^joint_transformer_blocks\.", "AuraFlow"),
    (r"^double_blocks\.\d+\.img_attn\.|^single_transformer_blocks\.\d+\.", "Flux.1"),
    (r"^blocks\.\d+\.attn\.qkv_x\.|^time_embed\.pooler\.", "Mochi"),
    (r"^joint_blocks\.37\.", "Stable Diffusion 3.5 Large"),
    (r"^joint_blocks\.\d+\.x_block\.attn2\.", "Stable Diffusion 3.5 Medium"),
    (r"^joint_blocks\.|^transformer_blocks\.\d+\.norm1_context\.", "Stable Diffusion 3"),
    (r"^transformer_blocks\.\d+\.img_mod\.|^txt_in\.text_norm\.", "Qwen-Image"),
    (r"\.inverted_conv\.|\.conv_inverted\.", "Sana"),
    (r"^patchify_proj\.|^time_embed\.emb\.timestep_embedder\.", "LTX-Video"),
    (r"^head\.modulation$|^vace_blocks\.|^condition_embedder\.time_proj\.", "Wan"),
    (r"^layers\.0\.adaLN_modulation\.0\.", "Z-Image"),
    (r"^cap_embedder\.0\.|^time_caption_embed\.", "Lumina"),
    (r"^y_embedder\.y_embedding$|^caption_projection\.y_embedding$|^adaln_single\.", "PixArt"),
    (r"^mlp_t5\.|^text_embedding_padding$", "Hunyuan-DiT"),
    (r"^patch_embed\.text_proj\.", "CogVideoX"),
    (r"^x_embedder\.proj\.1\.", "Cosmos"),
    (r"^prd_embedding$", "Kandinsky prior"),
    (r"^clip_txt_mapper\.", "Stable Cascade (stage C)"),
    (r"^down_blocks\.\d+\.\d+\.channelwise\.|^effnet_mapper\.", "Stable Cascade (stage B)"),
)

# Files that are no base: kind, name, and the word for it where the kind's is not enough.
_OTHER_FILES = (
    (r"(^|\.)motion_modules\.\d+\.", "adapter", "AnimateDiff", "motion module"),
    (r"^(image_proj|ip_adapter)\.", "adapter", "IP-Adapter", "IP-Adapter"),
    (r"^(adapter\.)?body\.\d+\.(resnets\.\d+\.)?block1\.weight$", "adapter", "T2I-Adapter", "T2I-Adapter"),
    (r"^emb_params$|^string_to_param(\.|$)", "embedding", "Stable Diffusion", ""),
    (r"^clip_[lg]$", "embedding", SDXL, ""),
    (r"^\d+\.\d+\.linear\.", "hypernetwork", "Stable Diffusion", ""),
    (r"^model\.1\.sub\.0\.|^RRDB_trunk\.|^body\.\d+\.rdb1\.conv1\.", "upscaler", "ESRGAN", ""),
    (r"^body\.1\.weight$|^layers\.\d+\.residual_group\.", "upscaler", "super-resolution", ""),
    (r"^concept_embeds$|^special_care_embeds$", "other", "safety checker", ""),
    (r"^(vision_model\.)?embeddings\.patch_embedding\.", "other", "CLIP of pictures", ""),
    (r"^(en|de)coder\.layers\.\d+\.(conv\.)?(0\.)?weight$|^taesd_", "vae", "TAESD (tiny)", ""),
    (r"^optimizer\.\d+\.exp_avg$", "other", "training state, of lorasmith", ""),
)

# What a network of small matrices is called, by the names of its tensors (LyCORIS, PEFT, sd-scripts).
_LORA_FORMS = (
    (r"\.hada_w1_a$", "LoHa"),
    (r"\.lokr_w[12](_a)?$", "LoKr"),
    (r"\.(dora_scale|lora_magnitude_vector(\.\w+)*)$", "DoRA"),
    (r"\.(oft_blocks|oft_diag|oft_R(\.\w+)*)$", "OFT"),
    (r"\.lora_mid\.weight$", "LoCon (Tucker)"),
    (r"\.on_input$", "IA3"),
    (r"\.(a1|b1)\.weight$", "GLoRA"),
    (r"\.(lora_down|lora_up|lora_A|lora_B)(\.\w+)?\.weight$|_lora\.(down|up)\.weight$", "LoRA"),
    (r"\.lora(_linear_layer)?\.(down|up)\.weight$", "LoRA"),
)
_SMALL_MATRIX = re.compile(
    r"\.(hada_|lokr_|oft_|lora_|dora_scale|lora\.|a[12]\.weight|b[12]\.weight|on_input|alpha$|diff|w_norm|b_norm)|_lora\."
)
_DOWN = re.compile(r"(attn2[._]to_[kv]|attn2\.processor\.to_[kv]_lora)\.(\w+\.)?(lora_down|lora_A|down|hada_w1_b)\b")


@dataclass(frozen=True)
class Family:
    """The family of a UNet; ``supported`` is Stable Diffusion 1.x in its plain form."""

    name: str
    supported: bool = False
    note: str = ""


def _first(marks: Iterable[tuple[str, ...]], names: Iterable[str]) -> tuple[str, ...] | None:
    text = "\n".join(names)
    return next((mark for mark in marks if re.search(mark[0], text, re.MULTILINE)), None)


def other_base(names: Iterable[str]) -> str:
    """Return the name of a base that is no UNet of Stable Diffusion's kind, or ""."""
    found = _first(_OTHER_BASES, names)
    return found[1] if found else ""


def other_file(shapes: Mapping[str, Shape]) -> tuple[str, str, str] | None:
    """Return kind, name and noun of a file that is neither a base nor one of its parts."""
    if len(shapes) == 1:
        name, shape = next(iter(shapes.items()))
        if len(shape) in (1, 2) and re.fullmatch(r"<[^<>]+>|\*|embedding", name):  # diffusers' learned_embeds
            return "embedding", "Stable Diffusion", ""
    found = _first(_OTHER_FILES, shapes)
    return (found[1], found[2], found[3]) if found else None


def unet_family(unet: Mapping[str, Shape], whole: Mapping[str, Shape]) -> Family:
    """Return the family of a UNet in the original or the diffusers layout.

    Args:
        unet: its tensors, without their prefix; dots may be missing, as in a moving average's names.
        whole: all tensors of the file it is in, whose text encoder tells more; may be empty.
    """
    flat = {name.replace(".", ""): shape for name, shape in unet.items()}
    name = _special(flat, whole) or _plain(flat, whole)
    if name in (SD1, SD2, SDXL) and (use := _use(flat)):
        return Family(f"{name} {use}")
    note = "Whether it predicts noise or velocity (v-prediction) cannot be told from its weights."
    return Family(name, name == SD1, note if name == SD2 else "")


def _special(flat: Mapping[str, Shape], whole: Mapping[str, Shape]) -> str:
    """Return the name of a relative of Stable Diffusion, whose UNet or text encoder has what the others lack."""
    names = "\n".join(flat)
    text = "\n".join(whole)
    for mark, name in (
        (r"time_stack|time_mixer|temporal_transformer_blocks", "Stable Video Diffusion"),
        (r"temopral_conv|temp_convs", "ModelScope text-to-video"),
        (r"motion_modules", "AnimateDiff"),
        (r"fuser", "GLIGEN"),
        (r"time_embeddingcond_proj", "LCM (latent consistency model)"),
        (r"add_embeddingimage|encoder_hid_projimage", "Kandinsky"),
        (r"encoder_hid_proj", "Kolors" if "add_embeddinglinear_1weight" in flat else "DeepFloyd IF"),
        (r"^(label_embweight|class_embeddingweight)$", "Stable Diffusion x4 upscaler"),
    ):
        if re.search(mark, names, re.MULTILINE):
            return name
    for mark, name in (
        (r"^edm_mean$", "Playground v2.5"),
        (r"^cc_projection\.", "Zero-1-to-3"),
        (r"^cond_stage_model\.model\.visual\.|^cond_stage_model\.vision_model\.", "Stable Diffusion image variations"),
        (r"^cond_stage_model\.(roberta|transformation)\.", "AltDiffusion"),
        (r"^cond_stage_model\.(transformer\.token_emb|embedding)\.", "latent diffusion (before Stable Diffusion)"),
    ):
        if re.search(mark, text, re.MULTILINE):
            return name
    return "" if re.search(r"attn2to_k", names) else "latent diffusion without text"


def _plain(flat: Mapping[str, Shape], whole: Mapping[str, Shape]) -> str:
    names = "\n".join(flat)
    width = next((shape[1] for name, shape in flat.items() if name.endswith("attn2to_kweight") and len(shape) == 2), 0)
    deep = bool(re.search(r"transformer_blocks[1-9]", names))
    twelve = bool(re.search(r"^(input_blocks9|down_blocks3)", names, re.MULTILINE))  # blocks on the way down; XL: 9
    if deep or "label_emb00weight" in flat or "add_embeddinglinear_1weight" in flat:
        if twelve:
            return "SDXL refiner" if deep else "Stable Diffusion 2.x unCLIP"
        return SDXL
    if "class_embeddinglinear_1weight" in flat:
        return "Stable Diffusion 2.x unCLIP"
    if any(name.startswith("conditioner.") for name in whole):
        return SDXL
    linear = next((len(shape) == 2 for name, shape in flat.items() if name.endswith("proj_inweight")), width == 1024)
    if linear or any(name.startswith("cond_stage_model.model.") for name in whole):
        return SD2
    return SD1


def _use(flat: Mapping[str, Shape]) -> str:
    """Return what a UNet is for if it takes more channels than it makes, as inpainting does, or ""."""
    first = flat.get("input_blocks00weight", flat.get("conv_inweight", ()))
    last = flat.get("out2weight", flat.get("conv_outweight", ()))
    if len(first) != 4 or len(last) != 4 or first[1] == last[0]:
        return ""
    latent, more = last[0], first[1] - last[0]
    return {latent + 1: "inpainting", latent: "instruct-pix2pix", 1: "depth"}.get(more, f"with {first[1]} inputs")


def lora_form(names: Iterable[str]) -> str:
    """Return what kind of small matrices a file holds ("LoRA", "LoHa", ...), or "" if it is no such file."""
    names = list(names)
    if "lora_controlnet" in names or 2 * sum(bool(_SMALL_MATRIX.search(name)) for name in names) < len(names) + 1:
        return ""
    found = _first(_LORA_FORMS, names)
    return found[1] if found else ""


def lora_family(shapes: Mapping[str, Shape]) -> str:
    """Return the family of the base that a LoRA (or LoHa, ...) was made for."""
    text = "\n".join(shapes)
    for mark, name in (
        (r"motion_modules", "AnimateDiff"),
        (r"(double|single)_blocks|single_transformer_blocks", "Flux.1"),
        (r"joint_blocks|add_k_proj", "Stable Diffusion 3"),
        (r"lora_te2_|text_encoder_2\.", SDXL),
    ):
        if re.search(mark, text):
            return name
    if not re.search(r"(down|up|input|output)_blocks|mid(dle)?_block|(^|\n)(lora_te1?_|text_encoder\.|te\.)", text):
        return "another architecture's"
    if re.search(r"transformer_blocks[._][1-9]", text):
        return SDXL
    for name, shape in shapes.items():
        if re.search(r"proj_in\.(lora\.)?(lora_down|lora_A|down)\b", name):
            return SD1 if len(shape) == 4 else SD2
    width = next((shape[1] for name, shape in shapes.items() if _DOWN.search(name) and len(shape) > 1), 0)
    if not width:  # a text encoder's LoRA, whose own width is what its UNet reads
        te = re.compile(r"(lora_te1?_|text_encoder\.).*(self_attn[._]q_proj|to_q_lora)\.(lora_down|lora_A|down)\b")
        width = next((shape[1] for name, shape in shapes.items() if te.match(name) and len(shape) == 2), 0)
    return {1024: SD2, 1280: SDXL, 2048: SDXL}.get(width, SD1)
