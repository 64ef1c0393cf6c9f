"""What the shapes of a base's weights do not tell: heads, groups, the VAE's scale, the noise schedule.

A single file of SD 1.x does not hold them, and everyone takes them for known. A file that lorasmith writes states
them in its metadata, so that a base of another size, such as the starter, survives the way there and back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorasmith.errors import ModelError

SETTINGS_KEY = "lorasmith.settings"
_LIMIT = 1 << 16
_Count = Annotated[int, Field(ge=1, le=4096)]
_Size = Annotated[int, Field(ge=1, le=65536)]
_Small = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Unet(_Section):
    attention_head_dim: _Count
    norm_num_groups: _Count
    sample_size: _Size


class _Vae(_Section):
    norm_num_groups: _Count
    sample_size: _Size
    scaling_factor: Annotated[float, Field(gt=0, lt=1000)]


class _Text(_Section):
    head_width: _Count
    hidden_act: Literal["quick_gelu", "gelu"]
    layer_norm_eps: _Small


class _Scheduler(_Section):
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)]
    beta_start: _Small
    beta_end: _Small
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
    prediction_type: Literal["epsilon", "v_prediction"]
    set_alpha_to_one: bool
    skip_prk_steps: bool
    steps_offset: Annotated[int, Field(ge=0, le=1000)]
    clip_sample: bool = False
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None  # None: each sampler's own


class _Settings(_Section):
    unet: _Unet
    vae: _Vae
    text_encoder: _Text
    scheduler: _Scheduler


def read_settings(text: str, where: str) -> dict[str, dict[str, Any]]:
    """Return the settings that a file's metadata states, by part.

    Raises:
        ModelError: they are damaged, or say what cannot be.
    """
    try:
        if len(text) > _LIMIT:
            raise ValueError("they are too long")
        return _Settings.model_validate(json.loads(text)).model_dump(exclude_none=True)
    except (ValidationError, ValueError, RecursionError) as error:
        raise ModelError(
            f"The settings in the file's metadata ({SETTINGS_KEY}) are damaged: {_first(error)}.",
            where=where,
            fix="Convert the base again, or use the base it was made from.",
        ) from error


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return str(error)


def stated_settings(
    configs: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the settings of a base from its parts' configs, to be written into a single file's metadata.

    Raises:
        ModelError: a config has a setting that a single file cannot state.
    """
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    heads = int(text["num_attention_heads"])
    values = {
        "unet": {k: _single(unet[k]) for k in _Unet.model_fields},
        "vae": {k: _single(vae[k]) for k in _Vae.model_fields},
        "text_encoder": {
            "head_width": int(text["hidden_size"]) // heads,
            "hidden_act": text["hidden_act"],
            "layer_norm_eps": float(text["layer_norm_eps"]),
        },
        "scheduler": {k: scheduler.get(k, value) for k, value in _SCHEDULER_DEFAULTS.items()},
    }
    try:
        if unknown := [k for k in ("trained_betas", "rescale_betas_zero_snr") if scheduler.get(k)]:
            raise ValueError(f"its noise schedule has {' and '.join(unknown)}")
        return _Settings.model_validate(values).model_dump(exclude_none=True)
    except ValueError as error:
        raise ModelError(
            f"This base cannot be written into a single file: {_first(error)}.",
            fix="Write it as a folder in the diffusers layout.",
        ) from error


_SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": False, "steps_offset": 0,
    "clip_sample": False, "timestep_spacing": None,
}  # fmt: skip


def _single(value: Any) -> Any:
    """Return the one value of a list of equals; some configs give a number for each level."""
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        return value[0]
    return value


def result_settings(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a part's settings that shapes do not tell and its results depend on; the same in any layout."""
    if part == "unet":
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        return {"heads": _single(heads), "groups": config.get("norm_num_groups", 32)}
    if part == "vae":
        return {"scale": float(config.get("scaling_factor", 0.18215)), "groups": config.get("norm_num_groups", 32)}
    return {
        "heads": config.get("num_attention_heads", 8),
        "act": config.get("hidden_act", "quick_gelu"),
        "eps": config.get("layer_norm_eps", 1e-5),
    }
