"""The names and shapes of Stable Diffusion's original layout, as the one-file checkpoints of SD 1.x have them.

CompVis' latent-diffusion names its modules by their places in lists (``input_blocks.4.1.proj_in``); diffusers names
them by what they are (``down_blocks.1.attentions.0.proj_in``). The two hold the same tensors. Names are made here in
one direction only, from diffusers' to the original, for a model of any width and depth; reading goes through the
names that a model has. What shapes tell of a model is read off them; what they do not tell (how many attention
heads, the VAE's scale) is that of SD 1.x, unless the file states it.

Source: github.com/CompVis/stable-diffusion, configs/stable-diffusion/v1-inference.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
EMA_PREFIX = "model_ema."

# What shapes do not tell, as SD 1.x has it.
SD1_SETTINGS: dict[str, dict[str, Any]] = {
    "unet": {"attention_head_dim": 8, "norm_num_groups": 32, "sample_size": 64},
    "vae": {"norm_num_groups": 32, "sample_size": 512, "scaling_factor": 0.18215},
    "text_encoder": {"head_width": 64, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "scheduler": {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "clip_sample": False,
    },
}  # fmt: skip

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_UNET_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
              "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def ema_name(name: str) -> str:
    """Return the name under which a moving average of the UNet's ``name`` (in the original layout) is kept.

    The makers' LitEma registers buffers, whose names may hold no dot, by the name under ``model.`` without dots.
    """
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")


def original_unet_name(name: str, layers: int) -> str:
    """Return the original name, without its prefix, of a UNet's tensor.

    Args:
        layers: residual blocks at each level on the way down; 2 in SD 1.x. On the way up there is one more.
    """
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        side, level, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        place = 1 + level * (layers + 1) + layer if side == "down" else level * (layers + 1) + layer
        block = f"{'input' if side == 'down' else 'output'}_blocks.{place}"
        return f"{block}.0.{_renamed(rest, _RESNET)}" if kind == "resnets" else f"{block}.1.{rest}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", name):
        # The upsampler follows the block's attention, whose place is kept free (see ``_upsampler_place``).
        return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.*.conv.{found[2]}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        resnet = found[1] == "resnets"
        place = 2 * int(found[2]) + (0 if resnet else 1)
        return f"middle_block.{place}.{_renamed(found[3], _RESNET) if resnet else found[3]}"
    return _renamed(name, _UNET_ENDS)


def original_unet_names(names: Mapping[str, Any], layers: int) -> dict[str, str]:
    """Return the original name, without its prefix, of each of a UNet's tensors."""
    found = {name: original_unet_name(name, layers) for name in names}
    places = set(found.values())
    return {name: _upsampler_place(original, places) for name, original in found.items()}


def _upsampler_place(original: str, places: set[str]) -> str:
    block, star, rest = original.partition(".*.")
    if not star:
        return original
    attends = any(place.startswith(f"{block}.1.") for place in places)
    return f"{block}.{2 if attends else 1}.{rest}"


def original_vae_name(name: str, levels: int) -> str:
    """Return the original name, without its prefix, of a VAE's tensor; the decoder counts from the other end.

    Args:
        levels: how many resolutions the VAE has; 4 in SD 1.x.
    """
    side, _, rest = name.partition(".")
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
        level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        return f"{side}.{found[1]}.{level}.block.{found[3]}.{_shortcut(found[4])}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.conv\.(.+)", rest):
        level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        return f"{side}.{found[1]}.{level}.{found[3]}sample.conv.{found[4]}"
    if found := re.fullmatch(r"mid_block\.resnets\.(\d+)\.(.+)", rest):
        return f"{side}.mid.block_{int(found[1]) + 1}.{_shortcut(found[2])}"
    if found := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", rest):
        return f"{side}.mid.attn_1.{_renamed(found[1], _VAE_ATTENTION)}"
    return name.replace(".conv_norm_out.", ".norm_out.")


def original_vae_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Return the original name, without its prefix, of each of a VAE's tensors."""
    levels = 1 + max((int(n.split(".")[2]) for n in names if n.startswith("encoder.down_blocks.")), default=0)
    return {name: original_vae_name(name, levels) for name in names}


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        if name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name


def unet_config(shapes: Shapes, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of diffusers' ``UNet2DConditionModel`` for a UNet in the original layout.

    Args:
        shapes: of its tensors, by original names without their prefix.
        settings: what shapes do not tell, as in ``SD1_SETTINGS``.

    Raises:
        KeyError: a tensor that every such UNet has is not there.
    """
    places = [int(found[1]) for n in shapes if (found := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", n))]
    blocks = 1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("input_blocks."))
    layers = (min(places) if places else blocks) - 1
    firsts = [1 + level * (layers + 1) for level in range(len(places) + 1)]
    attends = [f"input_blocks.{place}.1.proj_in.weight" in shapes for place in firsts]
    text = next(s[1] for n, s in shapes.items() if n.endswith(".attn2.to_k.weight"))
    return {
        **settings,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": [shapes[f"input_blocks.{place}.0.out_layers.3.weight"][0] for place in firsts],
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        "cross_attention_dim": text,
    }


def vae_config(shapes: Shapes, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of diffusers' ``AutoencoderKL`` for a VAE in the original layout; as ``unet_config``."""
    levels = 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith("encoder.down."))
    layers = 1 + max(int(n.split(".")[4]) for n in shapes if n.startswith("encoder.down.0.block."))
    return {
        **settings,
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)],
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_config(shapes: Shapes, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of transformers' ``CLIPTextConfig``; as ``unet_config``, names with ``text_model.``."""
    words, width = shapes["text_model.embeddings.token_embedding.weight"]
    layers = 1 + max(int(n.split(".")[3]) for n in shapes if n.startswith("text_model.encoder.layers."))
    return {
        "hidden_act": settings["hidden_act"],
        "layer_norm_eps": settings["layer_norm_eps"],
        "num_attention_heads": max(1, width // int(settings["head_width"])),
        "vocab_size": words,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": layers,
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
