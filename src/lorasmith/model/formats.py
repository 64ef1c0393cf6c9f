"""LoRA files: written for diffusers and PEFT, and for the programs that read kohya's keys; read from either.

Both are safetensors files (https://github.com/huggingface/safetensors): a header of JSON, then plain numbers. Pickles
are refused. The diffusers format is that of ``StableDiffusionPipeline.save_lora_weights`` with its adapter metadata,
without which a reader takes alpha for the rank; the other is that of sd-scripts' ``networks.lora``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import LoraError
from lorasmith.files import write_bytes
from lorasmith.model.lora import Lora, make_lora

_ADAPTER_METADATA = "lora_adapter_metadata"
_KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_KOHYA_NAME = re.compile("lora_(?P<part>unet|te1?)_(?P<rest>.+)")
_HEADER_LIMIT = 16 << 20  # a LoRA's header is some 100 KiB
_FIX = "Get the file again from where it came; if you made it, make it again."

# A kohya key writes "_" for "." too, so names that hold a "_" of their own must be known to read it back.
_WORD = re.compile(
    "down_blocks|up_blocks|mid_block|transformer_blocks|to_q|to_k|to_v|to_out|proj_in|proj_out|time_emb_proj|"
    "time_embedding|conv_shortcut|conv_in|conv_out|linear_1|linear_2|text_model|self_attn|[qkv]_proj|out_proj|[^_]+"
)
# The names of A and B through the ages: PEFT's, diffusers' of 2023, and kohya's.
_MATRIX = re.compile(
    r"^(?P<module>.+?)(?:\.processor\.(?P<to>to_(?:q|k|v|out))_lora|\.lora_linear_layer|\.lora)?"
    r"\.(?:(?P<a>lora_A|lora_down|down)|(?P<b>lora_B|lora_up|up))\.weight$"
)


def write_diffusers(lora: Lora, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file that ``pipeline.load_lora_weights(path)`` of diffusers reads, alpha included.

    Args:
        metadata: what the file shall say of itself, besides what it must.

    Raises:
        LoraError: the LoRA holds numbers that are not finite.
        OutputError: the disk refuses.
    """
    settings: dict[str, Any] = {}
    for part in ("unet", "text_encoder"):
        modules = [m for m in lora.modules if m.startswith(f"{part}.")]
        if modules:
            settings |= {f"{part}.{key}": value for key, value in _peft_settings(lora, modules).items()}
    about = {**(metadata or {}), "format": "pt", _ADAPTER_METADATA: json.dumps(settings, indent=2, sort_keys=True)}
    _write(lora.tensors, path, about)


def _peft_settings(lora: Lora, modules: list[str]) -> dict[str, Any]:
    """Return the arguments of ``peft.LoraConfig`` that make these modules; few, so that older versions know all."""
    ranks = {_peft_path(m): lora.pair(m)[0].shape[0] for m in modules}
    alphas = {_peft_path(m): lora.alphas[m] for m in modules if m in lora.alphas}
    return {
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "target_modules": sorted(ranks),
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != lora.rank},
        "alpha_pattern": {path: _number(alpha) for path, alpha in alphas.items()},
    }


def _peft_path(module: str) -> str:
    # PEFT compares the ends of names, so the level that transformers 5 dropped is left out.
    return module.partition(".")[2].removeprefix("text_model.")


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def write_kohya(lora: Lora, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file with kohya's keys, for ComfyUI, InvokeAI, AUTOMATIC1111 and their like. Arguments as above."""
    tensors = {}
    for module in lora.modules:
        part, _, rest = module.partition(".")
        name = _KOHYA_PREFIXES[part] + rest.replace(".", "_")
        a, b = lora.pair(module)
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = a, b
        tensors[f"{name}.alpha"] = torch.tensor(lora.alphas.get(module, lora.alpha))
    about = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.alpha),
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
    }
    convolutions = [m for m in lora.modules if lora.pair(m)[0].shape[2:] == (3, 3)]
    if convolutions:
        about["ss_network_args"] = json.dumps({"conv_dim": str(lora.rank), "conv_alpha": str(lora.alpha)})
    _write(tensors, path, {**(metadata or {}), **about})


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    _check_finite(tensors, path)
    data = save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))  # safetensors' own order differs from call to call
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_bytes(path, len(text).to_bytes(8, "little") + text + data[8 + length :])


def read_lora(path: Path) -> Lora:
    """Read a LoRA file of either format.

    Args:
        path: the file, or a folder with one ``lora.safetensors`` or ``pytorch_lora_weights.safetensors`` in it.

    Raises:
        LoraError: there is no such file, it is no safetensors file (a pickle is not opened), it is damaged, it is
            not a LoRA or a kind of LoRA that is not supported, or it holds numbers that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = lora_file(path)
    metadata = _read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise LoraError(f"The LoRA file is damaged: {error}", where=str(path), fix=_FIX) from error
    _check_finite(tensors, path)
    pairs, alphas = _named(tensors, path)
    alphas.update(_stated_alphas(pairs, alphas, metadata, path))
    return make_lora(pairs, alphas, metadata)


def lora_file(path: Path) -> Path:
    """Return the LoRA file of a path, which may be a folder with one in it, such as a checkpoint.

    Raises:
        LoraError: there is none.
    """
    names = ("lora.safetensors", "pytorch_lora_weights.safetensors")
    candidates = [path / name for name in names] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise LoraError("There is no LoRA file here.", where=str(path), fix="Check the name.")


def _read_header(path: Path) -> dict[str, str]:
    """Check a safetensors file's beginning and return its metadata, reading nothing else.

    safetensors itself checks offsets and lengths, but takes the last of several equal keys without a word.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_HEADER_LIMIT, path.stat().st_size):
                raise LoraError(_not_safetensors(start), where=str(path), fix="Get the LoRA as a .safetensors file.")
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
        return {str(k): str(v) for k, v in dict(header.get("__metadata__", {})).items()}
    except OSError as error:
        raise LoraError(
            f"The LoRA file cannot be read: {error.strerror}.", where=str(path), fix="Check the file."
        ) from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise LoraError(f"The LoRA file's header is damaged: {error}", where=str(path), fix=_FIX) from error


def _not_safetensors(start: bytes) -> str:
    pickled = start[:1] == b"\x80" and any(start[3:])  # a cut safetensors file may begin with that byte too
    if start[:2] == b"PK" or pickled:
        return "The LoRA file is a pickle, which can run code when opened; lorasmith does not open it."
    if start.startswith(b"version"):
        return "The LoRA file is a git-lfs pointer, not the file itself."
    if start.lstrip()[:1] == b"<":
        return "The LoRA file is a web page, not the file itself."
    return "The LoRA file is empty, cut off, or not a safetensors file."


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    if bad:
        raise LoraError(
            f"{len(bad)} of {len(tensors)} tensors of the LoRA hold numbers that are not finite, such as {bad[0]}.",
            where=str(path),
            fix="Its training failed: use an earlier checkpoint, or train with a lower learning rate.",
        )


def _named(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return pairs by diffusers' keys in float32, and the alphas that have tensors of their own."""
    pairs: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for key, tensor in tensors.items():
        if key.endswith(".alpha") and tensor.numel() == 1:
            alphas[_module_name(key.removesuffix(".alpha"))] = float(tensor)
        elif (found := _MATRIX.match(key)) and tensor.ndim in (2, 4):
            module = found["module"] + (f".{found['to']}".replace("to_out", "to_out.0") if found["to"] else "")
            pairs[f"{_module_name(module)}.{'lora_A' if found['a'] else 'lora_B'}.weight"] = tensor.float()
        else:
            unknown.append(key)
    modules = {key.rpartition(".lora_")[0] for key in pairs}
    halves = [m for m in sorted(modules) if not {f"{m}.lora_A.weight", f"{m}.lora_B.weight"} <= pairs.keys()]
    if unknown or halves or not pairs:
        examples = f" Such as: {', '.join([*unknown, *halves][:3])}." if unknown or halves else ""
        raise LoraError(
            f"This is not a LoRA that lorasmith reads: it has {len(modules)} LoRA modules, {len(halves)} of them half, "
            f"and {len(unknown)} unknown tensors.{examples}",
            where=str(path),
            fix="lorasmith reads plain LoRAs (no LoHa, LoKr or DoRA) with the keys of diffusers or kohya.",
        )
    return dict(sorted(pairs.items())), alphas


def _module_name(name: str) -> str:
    """Return a module's name as ``Lora`` has it, from that of any format."""
    if kohya := _KOHYA_NAME.fullmatch(name):
        part = "unet" if kohya["part"] == "unet" else "text_encoder"
        return f"{part}.{'.'.join(_WORD.findall(kohya['rest']))}"
    if name.startswith("text_encoder.") and not name.startswith("text_encoder.text_model."):
        return name.replace("text_encoder.", "text_encoder.text_model.", 1)
    return name


def _stated_alphas(
    pairs: dict[str, Tensor], known: dict[str, float], metadata: dict[str, str], path: Path
) -> dict[str, float]:
    """Return the alphas that diffusers' adapter metadata gives to modules without an alpha tensor."""
    if _ADAPTER_METADATA not in metadata:
        return {}
    alphas = {}
    try:
        settings = json.loads(metadata[_ADAPTER_METADATA])
        for key in pairs:
            module, _, matrix = key.rpartition(".lora_")
            part, _, rest = module.partition(".")
            if matrix == "A.weight" and module not in known and f"{part}.lora_alpha" in settings:
                patterns = settings.get(f"{part}.alpha_pattern") or {}
                own = [v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", rest.removeprefix("text_model."))]
                alphas[module] = float(own[0] if own else settings[f"{part}.lora_alpha"])
                if settings.get(f"{part}.use_rslora"):
                    alphas[module] *= pairs[key].shape[0] ** 0.5  # its scale is alpha / sqrt(rank)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise LoraError(f"The LoRA file's adapter metadata is damaged: {error}", where=str(path), fix=_FIX) from error
    return alphas
