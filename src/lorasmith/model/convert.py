"""Write a base in another layout or precision: one file of the original layout, or a folder of the diffusers layout.

Weights go from file to file one tensor at a time; no model is loaded. At the same precision they are the same bits
in either layout, which is proved at the end by reading what was written.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import LorasmithError, ModelError, OutputError
from lorasmith.events import Event, Finished, Note, Progress
from lorasmith.files import new_folder, require_writable, sync_folder, write_json
from lorasmith.model.assemble import build, check_architecture
from lorasmith.model.base_files import PARTS, BaseFiles
from lorasmith.model.base_settings import SETTINGS_KEY, stated_settings
from lorasmith.model.clip_tokenizer import clip_tokenizer, merges_of, write_tokenizer
from lorasmith.model.find_base import find_base
from lorasmith.model.original_layout import PREFIXES, original_unet_names, original_vae_names
from lorasmith.model.part_weights import PartWeights, Place
from lorasmith.model.safetensors_writer import Planned, write_safetensors
from lorasmith.model.stored_tensor import count_not_finite

_MIB = 1 << 20
_TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.json",
)  # fmt: skip
_FOLDER_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}


def convert(base: BaseFiles, out: Path, dtype: torch.dtype | None = None) -> Iterator[Event]:
    """Write a base to ``out``: a single file where that ends in .safetensors, else a folder.

    Args:
        base: what ``find_base`` found, with the VAE and the choice of weights that were asked for.
        dtype: of the weights; None leaves each as it is.

    Yields:
        Note for what was chosen, Progress in MiB, Finished.

    Raises:
        ModelError: a weight is damaged, or the base cannot be written in that layout.
        OutputError: ``out`` exists, or the disk refuses.
    """
    single = out.suffix.lower() == ".safetensors"
    if not single and out.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise OutputError(
            "Pickles are not written: opening one can run code.",
            where=str(out),
            fix=f"Write {out.with_suffix('.safetensors').name}, which every program of today reads, or a folder.",
        )
    if out.exists():
        raise OutputError("There is something of that name already.", where=str(out), fix="Choose another name.")
    modules = {part: build(part, base.configs[part], base.path) for part in PARTS}
    check_architecture(base.path, **modules)
    plans = {part: _planned(weights, dtype) for part, weights in base.weights.items()}
    require_writable(out.parent, sum(p.nbytes for plan in plans.values() for p in plan.values()) + _MIB)
    for note in base.notes:
        yield Note(note)
    if single:
        yield from _write_file(base, out, plans, modules)
    else:
        yield from _write_folder(base, out, plans, modules)
    yield from _prove(base, out, plans, same=dtype is None)
    yield Finished("convert", (out,), {})


def _planned(weights: PartWeights, dtype: torch.dtype | None) -> dict[str, Planned]:
    return {
        name: Planned(_kept(place, dtype), place.shape, _reader(place, dtype)) for name, place in weights.places.items()
    }


def _kept(place: Place, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and place.dtype.is_floating_point else place.dtype


def _reader(place: Place, dtype: torch.dtype | None) -> Callable[[], Tensor]:
    def read() -> Tensor:
        tensor = place.read()
        cast = tensor.to(_kept(place, dtype))
        if cast.is_floating_point() and not torch.isfinite(cast.sum(dtype=torch.float32)) and count_not_finite(cast):
            before = count_not_finite(tensor)
            raise ModelError(
                f'"{place.key}" holds {before:,} NaN or infinite numbers.'
                if before
                else f'{count_not_finite(cast):,} numbers of "{place.key}" are too large for fp16.',
                where=str(place.checkpoint.path),
                fix="Use another base; this one is damaged." if before else "Convert to bf16 or fp32.",
            )
        return cast

    return read


def _write_file(
    base: BaseFiles, out: Path, plans: Mapping[str, Mapping[str, Planned]], modules: Mapping[str, Any]
) -> Iterator[Event]:
    configs = {part: _config(modules[part]) for part in PARTS}
    if base.tokenizer is not None:
        _check_tokenizer(base.tokenizer, modules["text_encoder"].config)
    names = {
        "unet": original_unet_names(plans["unet"], configs["unet"]["layers_per_block"]),
        "vae": original_vae_names(plans["vae"]),
        "text_encoder": {name: name for name in plans["text_encoder"]},
    }
    tensors = {
        PREFIXES[part] + names[part][name]: _as_convolution(planned) if _is_vae_attention(part, name) else planned
        for part, plan in plans.items()
        for name, planned in plan.items()
    }
    about = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        SETTINGS_KEY: json.dumps(stated_settings(configs, base.scheduler), sort_keys=True),
    }
    total = sum(planned.nbytes for planned in tensors.values())
    yield Progress("writing", 0, total // _MIB, "MiB")
    for done in write_safetensors(out, tensors, about):
        yield Progress("writing", done // _MIB, total // _MIB, "MiB")


def _is_vae_attention(part: str, name: str) -> bool:
    return part == "vae" and ".attentions." in name and ".to_" in name and name.endswith(".weight")


def _as_convolution(planned: Planned) -> Planned:
    """Return a linear layer's weight as that of a 1x1 convolution, which it was in the original layout."""
    shape = (*planned.shape, 1, 1)
    return Planned(planned.dtype, shape, lambda: planned.read().reshape(shape))


def _check_tokenizer(folder: Path, config: Any) -> None:
    """Refuse a base with a tokenizer of its own, which a single file cannot hold."""
    from transformers import CLIPTokenizer

    try:
        ours = clip_tokenizer(int(config.vocab_size), int(config.max_position_embeddings)).get_vocab()
        same = CLIPTokenizer.from_pretrained(folder, local_files_only=True).get_vocab() == ours
    except LorasmithError:
        same = False
    if not same:
        raise ModelError(
            "This base has a tokenizer of its own, which a single file cannot hold.",
            where=str(folder),
            fix="Keep it as a folder in the diffusers layout.",
        )


def _config(module: Any) -> dict[str, Any]:
    config = module.config
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _write_folder(
    base: BaseFiles, out: Path, plans: Mapping[str, Mapping[str, Planned]], modules: Mapping[str, Any]
) -> Iterator[Event]:
    total = sum(planned.nbytes for plan in plans.values() for planned in plan.values())
    begun = 0
    yield Progress("writing", 0, total // _MIB, "MiB")
    temporary = out.parent / f".tmp-{secrets.token_hex(6)}"
    try:
        for part, plan in plans.items():
            folder = new_folder(temporary / part)
            module = modules[part]
            if part == "text_encoder":
                # The dtype that transformers would load in; the others load in float32, and all must agree.
                settings = {**module.config.to_dict(), "architectures": [_CLASSES[part]], "dtype": "float32"}
                write_json(folder / "config.json", settings)
            else:
                module.save_config(folder)
            for done in write_safetensors(folder / _FOLDER_FILES[part], plan, {"format": "pt"}):
                yield Progress("writing", (begun + done) // _MIB, total // _MIB, "MiB")
            begun += sum(planned.nbytes for planned in plan.values())
        _write_tokenizer(base, new_folder(temporary / "tokenizer"), modules["text_encoder"].config)
        _write_scheduler(base, new_folder(temporary / "scheduler"))
        write_json(temporary / "model_index.json", _index(base))
        temporary.replace(out)
    except OSError as error:
        raise OutputError(f"The folder cannot be written: {error.strerror}.", where=str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(out.parent)


def _write_tokenizer(base: BaseFiles, folder: Path, config: Any) -> None:
    if base.tokenizer is None:
        write_tokenizer(folder, merges_of(int(config.vocab_size)), int(config.max_position_embeddings))
        return
    for name in _TOKENIZER_FILES:
        if (base.tokenizer / name).is_file():
            shutil.copyfile(base.tokenizer / name, folder / name)


def _scheduler_class(base: BaseFiles) -> str:
    return str(base.scheduler.get("_class_name", "PNDMScheduler"))


def _write_scheduler(base: BaseFiles, folder: Path) -> None:
    write_json(folder / "scheduler_config.json", {**base.scheduler, "_class_name": _scheduler_class(base)})


def _index(base: BaseFiles) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", _scheduler_class(base)],
        "text_encoder": ["transformers", _CLASSES["text_encoder"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", _CLASSES["unet"]],
        "vae": ["diffusers", _CLASSES["vae"]],
    }


def _prove(base: BaseFiles, out: Path, plans: Mapping[str, Mapping[str, Planned]], *, same: bool) -> Iterator[Event]:
    """Read what was written and compare it: every bit where the precision is the same, else names, shapes and dtypes.

    Raises:
        ModelError: something differs. What was written is left for inspection.
    """
    found = find_base(str(out))
    yield Progress("checking", 0, len(PARTS), "parts")
    for done, part in enumerate(PARTS, start=1):
        wanted = {name: (planned.dtype, planned.shape) for name, planned in plans[part].items()}
        written = {name: (place.dtype, place.shape) for name, place in found.weights[part].places.items()}
        if written != wanted or (same and found.weights[part].content_sha256() != base.weights[part].sha256()):
            raise ModelError(
                f"The {part.replace('_', ' ')} that was written is not the one that was read.",
                where=str(out),
                fix="Check the disk, and convert again; please report it if it stays.",
            )
        yield Progress("checking", done, len(PARTS), "parts")
    yield Note("Checked: every weight that was written is the one that was read." if same else "Checked.")
