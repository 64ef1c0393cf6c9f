"""Families are told from names and shapes, for models that diffusers and transformers themselves make, in small."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorasmith.model.architecture import Architecture, identify
from lorasmith.model.original_layout import ema_name, original_unet_names, original_vae_names

Shapes = dict[str, tuple[int, ...]]
UNET = "model.diffusion_model."

XL = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
}
REFINER = {
    **XL,
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 2,
}
UNCLIP = {"use_linear_projection": True, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 20}
TRUE = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
UNETS: dict[str, tuple[dict[str, Any], str]] = {
    "sd 1 in miniature": ({}, "Stable Diffusion 1.x"),
    "sd 1 of the true size": (TRUE, "Stable Diffusion 1.x"),
    "sd 1 with wide text": ({"cross_attention_dim": 1024}, "Stable Diffusion 1.x"),
    "sd 1 with other latents": ({"in_channels": 16, "out_channels": 16}, "Stable Diffusion 1.x"),
    "sd 1 inpainting": ({"in_channels": 9}, "Stable Diffusion 1.x inpainting"),
    "sd 1 instruct-pix2pix": ({"in_channels": 8}, "Stable Diffusion 1.x instruct-pix2pix"),
    "sd 2": ({"use_linear_projection": True, "cross_attention_dim": 1024}, "Stable Diffusion 2.x"),
    "sd 2 in miniature": ({"use_linear_projection": True}, "Stable Diffusion 2.x"),
    "sd 2 inpainting": ({"use_linear_projection": True, "in_channels": 9}, "Stable Diffusion 2.x inpainting"),
    "sd 2 depth": ({"use_linear_projection": True, "in_channels": 5}, "Stable Diffusion 2.x depth"),
    "sd 2 unclip": (UNCLIP, "Stable Diffusion 2.x unCLIP"),
    "x4": ({"in_channels": 7, "num_class_embeds": 10, "use_linear_projection": True}, "Stable Diffusion x4 upscaler"),
    "sdxl": (XL, "SDXL"),
    "sdxl inpainting": ({**XL, "in_channels": 9}, "SDXL inpainting"),
    "sdxl refiner": (REFINER, "SDXL refiner"),
    "lcm": ({"time_cond_proj_dim": 16}, "LCM (latent consistency model)"),
}
SMALL = {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 64, "attention_head_dim": 8}
VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
CLIP = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}


def unet(config: dict[str, Any]) -> Shapes:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return {k: tuple(t.shape) for k, t in UNet2DConditionModel(**{**SMALL, **config}).state_dict().items()}


def original(shapes: Shapes) -> Shapes:
    """Return a UNet's names in the original layout, with its classes' embedding as Stability's UNets have it."""
    names = original_unet_names(shapes, 2)
    classes = {
        **{f"{kind}_embedding.linear_{n + 1}": f"label_emb.0.{2 * n}" for kind in ("add", "class") for n in (0, 1)},
        "class_embedding.weight": "label_emb.weight",
    }
    result = {}
    for name, shape in shapes.items():
        changed = names[name]
        for ours, theirs in classes.items():
            changed = changed.replace(ours, theirs)
        result[UNET + changed] = shape
    return result


@pytest.mark.parametrize("case", UNETS)
def test_unets_are_told_in_every_layout(case: str) -> None:
    config, name = UNETS[case]
    shapes = unet(config)
    there = original(shapes)
    plain = name == "Stable Diffusion 1.x"
    in_folder, whole = identify(shapes), identify(there)
    assert (in_folder.kind, in_folder.name, in_folder.layout) == ("unet", name, "diffusers")
    assert (whole.kind, whole.name, whole.layout, whole.parts) == ("base", name, "original", ("unet",))
    assert in_folder.supported is whole.is_base is plain
    assert not in_folder.is_base
    bare = identify({key.removeprefix(UNET): shape for key, shape in there.items()})
    assert (bare.kind, bare.name) == ("unet", name)
    averaged = {ema_name(key): shape for key, shape in there.items()}
    alone = identify({**averaged, "model_ema.decay": (), "model_ema.num_updates": ()})
    assert (alone.kind, alone.name, alone.parts) == ("base", name, ("ema",))
    assert identify({**there, **averaged}).parts == ("unet", "ema")


@pytest.mark.parametrize("level", ["text_model.", ""])
@pytest.mark.parametrize("vae", [True, False])
def test_the_parts_of_a_whole_file(level: str, vae: bool) -> None:
    shapes = original(unet({}))
    shapes[f"cond_stage_model.transformer.{level}embeddings.token_embedding.weight"] = (99, 64)
    shapes |= {"betas": (1000,), "alphas_cumprod": (1000,)}
    if vae:
        shapes["first_stage_model.decoder.conv_in.weight"] = (64, 4, 3, 3)
    found = identify(shapes)
    assert found.is_base
    assert found.parts == (("unet", "vae", "text encoder") if vae else ("unet", "text encoder"))


def test_text_encoders_inside_a_file_tell_families_apart() -> None:
    shapes = original(unet({}))
    inside = {
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": "Stable Diffusion 2.x",
        "cond_stage_model.model.visual.conv1.weight": "Stable Diffusion image variations",
        "cond_stage_model.transformer.token_emb.weight": "latent diffusion (before Stable Diffusion)",
        "cond_stage_model.roberta.embeddings.word_embeddings.weight": "AltDiffusion",
        "conditioner.embedders.1.model.positional_embedding": "SDXL",
        "cc_projection.weight": "Zero-1-to-3",
    }
    for key, name in inside.items():
        found = identify({**shapes, key: (8, 8)})
        assert (found.name, found.supported) == (name, False)


MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "svd": (
        "UNetSpatioTemporalConditionModel",
        {"block_out_channels": (32, 32, 64, 64)},
        "Stable Video Diffusion UNet",
    ),
    "motion": (
        "MotionAdapter",
        {"block_out_channels": (32, 32, 64, 64)},
        "AnimateDiff motion module",
    ),
    "controlnet": ("ControlNetModel", SMALL, "Stable Diffusion 1.x ControlNet"),
    "controlnet xl": (
        "ControlNetModel",
        {**{k: v for k, v in XL.items() if k != "up_block_types"}, "cross_attention_dim": 64},
        "SDXL ControlNet",
    ),
    "t2i": ("T2IAdapter", {"channels": (32, 64)}, "T2I-Adapter"),
    "t2i light": (
        "T2IAdapter",
        {"channels": (32, 64), "adapter_type": "light_adapter"},
        "T2I-Adapter",
    ),
    "flux": ("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "Flux.1 base"),
    "sd3": ("SD3Transformer2DModel", {"num_layers": 2}, "Stable Diffusion 3 base"),
    "pixart": ("PixArtTransformer2DModel", {"num_layers": 1}, "PixArt base"),
    "sana": ("SanaTransformer2DModel", {"num_layers": 1}, "Sana base"),
    "wan": ("WanTransformer3DModel", {"num_layers": 1}, "Wan base"),
    "ltx": ("LTXVideoTransformer3DModel", {"num_layers": 1}, "LTX-Video base"),
    "hunyuan video": (
        "HunyuanVideoTransformer3DModel",
        {"num_layers": 1, "num_single_layers": 1},
        "HunyuanVideo base",
    ),
    "flux vae": (
        "AutoencoderKL",
        {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        "SD3 or Flux VAE",
    ),
    "video vae": ("AutoencoderKLTemporalDecoder", {}, "video VAE"),
    "vq": ("VQModel", {}, "VQ VAE"),
    "taesd": ("AutoencoderTiny", {}, "TAESD (tiny) VAE"),
}


@pytest.mark.parametrize("case", MODELS)
def test_other_models_of_diffusers(case: str) -> None:
    import diffusers

    kind, config, text = MODELS[case]
    with torch.device("meta"):
        shapes = {k: tuple(t.shape) for k, t in getattr(diffusers, kind)(**config).state_dict().items()}
    found = identify(shapes)
    assert str(found) == text
    assert not found.supported


@pytest.mark.parametrize("latents", [4, 6])
def test_a_vae_in_either_layout(latents: int) -> None:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        state = AutoencoderKL(**VAE, latent_channels=latents).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    names = original_vae_names(state)
    theirs = {names[key]: shape for key, shape in shapes.items()}
    for layout, named in (("diffusers", shapes), ("original", theirs)):
        found = identify(named)
        assert (found.kind, found.layout, found.supported) == ("vae", layout, True)
        assert f"{latents} channels" in found.note
    inside = identify({f"first_stage_model.{key}": shape for key, shape in theirs.items()})
    assert (inside.kind, inside.layout, inside.supported) == ("vae", "original", True)
    half = identify({key: shape for key, shape in shapes.items() if not key.startswith("encoder.")})
    assert (half.kind, half.supported) == ("vae", False)


def test_text_and_picture_encoders() -> None:
    import transformers as tf
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    def shapes(model: Any) -> Shapes:
        return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}

    with torch.device("meta"):
        text = shapes(tf.CLIPTextModel(tf.CLIPTextConfig(**CLIP)))
        vision = shapes(tf.CLIPVisionModel(tf.CLIPVisionConfig(**{k: v for k, v in CLIP.items() if k != "vocab_size"})))
        both = shapes(tf.CLIPModel(tf.CLIPConfig()))
        t5 = shapes(tf.T5EncoderModel(tf.T5Config(num_layers=1)))
        checker = shapes(StableDiffusionSafetyChecker(tf.CLIPConfig()))
    assert identify(text) == Architecture("text encoder", "CLIP", "diffusers", supported=True)
    older = {f"text_model.{key.removeprefix('text_model.')}": shape for key, shape in text.items()}
    assert identify(older).supported
    inside = {f"cond_stage_model.transformer.{key}": shape for key, shape in older.items()}
    assert identify(inside) == Architecture("text encoder", "CLIP", "original", supported=True)
    wide = {"text_model.embeddings.token_embedding.weight": (49408, 1280)}
    assert not identify(wide).supported
    openclip = {"token_embedding.weight": (9, 8), "transformer.resblocks.0.attn.in_proj_weight": (24, 8)}
    assert str(identify(openclip)) == "OpenCLIP text encoder"
    assert str(identify(t5)) == "T5 text encoder"
    assert [str(identify(s)) for s in (vision, both, checker)] == [
        "CLIP of pictures", "CLIP of pictures and texts", "safety checker",
    ]  # fmt: skip


ATTENTION = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
LORAS: dict[str, tuple[Shapes, str, str, bool]] = {
    "kohya": (
        {f"lora_unet_{ATTENTION}.lora_{way}.weight": s for way, s in (("down", (4, 768)), ("up", (320, 4)))},
        "Stable Diffusion 1.x LoRA", "kohya", True,
    ),
    "kohya of the text only": (
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 768)},
        "Stable Diffusion 1.x LoRA", "kohya", True,
    ),
    "peft": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 48)},
        "Stable Diffusion 1.x LoRA", "peft", True,
    ),
    "attention processors": (
        {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 768)},
        "Stable Diffusion 1.x LoRA", "diffusers", True,
    ),
    "sd 2 by its width": ({f"lora_unet_{ATTENTION}.lora_down.weight": (4, 1024)}, "Stable Diffusion 2.x LoRA", "kohya",
                          False),
    "sd 2 by its build": (
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 64)}, "Stable Diffusion 2.x LoRA", "kohya",
        False,
    ),
    "sd 1 by its build": (
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 1024, 1, 1)}, "Stable Diffusion 1.x LoRA",
        "kohya", True,
    ),
    "sdxl": (
        {"lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_k.lora_down.weight": (4, 64)}, "SDXL LoRA", "kohya",
        False,
    ),
    "sdxl text": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 64)}, "SDXL LoRA", "kohya",
                  False),
    "flux": ({"transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (4, 64)}, "Flux.1 LoRA", "peft",
             False),
    "loha": ({f"lora_unet_{ATTENTION}.hada_w1_a": (9, 4), f"lora_unet_{ATTENTION}.hada_w1_b": (4, 9)},
             "Stable Diffusion 1.x LoHa", "kohya", False),
    "lokr": ({f"lora_unet_{ATTENTION}.lokr_w1": (9, 4), f"lora_unet_{ATTENTION}.lokr_w2_a": (4, 9)},
             "Stable Diffusion 1.x LoKr", "kohya", False),
    "dora": (
        {f"lora_unet_{ATTENTION}.{n}": (4, 9) for n in ("lora_down.weight", "lora_up.weight", "dora_scale")},
        "Stable Diffusion 1.x DoRA", "kohya", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LORAS)
def test_loras(case: str) -> None:
    shapes, text, layout, supported = LORAS[case]
    modules = {key.partition(".lora_")[0] for key in shapes if "kohya" in layout}
    found = identify({**shapes, **{f"{module}.alpha": () for module in modules}})
    assert (found.kind, str(found), found.layout, found.supported) == ("lora", text, layout, supported)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, "ControlNet"),
        (
            {"lora_controlnet": (), "input_blocks.1.0.in_layers.2.up": (4, 4), "input_hint_block.0.weight": (1,)},
            "Contr",
        ),
        ({"emb_params": (2, 768)}, "Stable Diffusion textual inversion"),
        ({"<axe>": (768,)}, "Stable Diffusion textual inversion"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "SDXL textual inversion"),
        ({"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}, "ESRGAN upscaler"),
        ({"ip_adapter.1.to_k_ip.weight": (320, 768), "image_proj.proj.weight": (9, 9)}, "IP-Adapter"),
        ({"joint_blocks.0.context_block.adaLN_modulation.1.bias": (9,)}, "Stable Diffusion 3 base"),
        ({f"{UNET}joint_blocks.37.x_block.mlp.fc1.weight": (9, 9)}, "Stable Diffusion 3.5 Large base"),
        ({f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": (9,)}, "Flux.1 base"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (9,)}, "Flux.1 base"),
        ({"optimizer.0.exp_avg": (9,)}, "training state, of lorasmith"),
        ({"fc.weight": (2, 2), "fc.bias": (2,)}, "model of no known kind"),
        ({}, "model of no known kind"),
    ],
)
def test_other_files_are_named(shapes: Shapes, text: str) -> None:
    found = identify(shapes)
    assert text in str(found)
    assert not found.supported


def test_refusals_say_what_it_is_and_what_to_do() -> None:
    xl = identify(original(unet(XL))).refusal("xl.safetensors")
    assert xl.what == "This is an SDXL base; lorasmith supports Stable Diffusion 1.x today."
    assert xl.where == "xl.safetensors"
    assert "Stable Diffusion 1.x base" in str(xl.fix)
    lora = identify(LORAS["kohya"][0]).refusal("x")
    assert lora.what == "This is a Stable Diffusion 1.x LoRA, not a base."
    assert "--lora" in str(lora.fix)
    assert "--lora" not in str(identify(LORAS["loha"][0]).refusal("x").fix)
    assert "inspect" in str(identify({"a": (1,)}).refusal("x").fix)
    assert identify(LORAS["flux"][0]).phrase == "a Flux.1 LoRA"
    assert identify({"ip_adapter.1.to_k_ip.weight": (3, 3)}).phrase == "an IP-Adapter"


def test_nothing_here_needs_torch() -> None:
    import subprocess
    import sys

    code = "import sys, lorasmith.model.architecture; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
