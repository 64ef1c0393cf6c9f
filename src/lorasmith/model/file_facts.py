"""What can be told of a file of weights without understanding it: its hashes, the names its pickle uses, and what it
says of its own making.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import struct
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lorasmith.errors import ModelError
from lorasmith.events import Progress
from lorasmith.model.pickle_opcodes import MAX_BYTES, MAX_OPERATIONS
from lorasmith.model.safetensors_header import is_safetensors
from lorasmith.model.zip_members import read_members

_BLOCK = 1 << 20
_SHOW_PROGRESS_FROM = 64 << 20  # bytes; smaller files are done at once
_LEGACY_AT, _LEGACY_SIZE = 0x100000, 0x10000
_MAX_GLOBALS = 1000
_MAX_TEXT = 200
_STREAM_OF_PICKLES = 5  # torch before 1.6 wrote a magic number, the protocol, the machine, the object, the keys


@dataclass(frozen=True)
class Hashes:
    """The hashes by which other programs know a file.

    Attributes:
        sha256: of the whole file.
        autov2: its first ten digits, which Civitai (AutoV2) and AUTOMATIC1111 show.
        autov1: AUTOMATIC1111's first kind: eight digits of the SHA-256 of 64 KiB at 1 MiB; "" for smaller files.
        weights: the SHA-256 of a safetensors file without its header (sd-scripts' sshs_model_hash, modelspec's
            hash_sha256), which does not change with the metadata; "" for other files.
        autov3: its first twelve digits, which Civitai (AutoV3) and AUTOMATIC1111 show for LoRAs; "" for other files.
    """

    sha256: str
    autov2: str
    autov1: str
    weights: str
    autov3: str


def report_every(done: int, before: int) -> bool:
    """Whether work that came from ``before`` to ``done`` bytes passed a mark at which progress is worth saying."""
    return done // (16 << 20) != before // (16 << 20)


def progress(stage: str, done: int, total: int) -> Progress:
    """Return the progress of reading ``total`` bytes."""
    return Progress(stage, done >> 20, max(total >> 20, 1), "MiB")


def hash_file(path: Path, *, weights_alone: bool = True) -> Generator[Progress, None, Hashes]:
    """Read a file once, for all of its hashes; a large one says how far it is.

    Args:
        weights_alone: hash a safetensors file without its header too, which takes the same time again.

    Raises:
        OSError: the file cannot be read.
    """
    whole, weights = hashlib.sha256(), hashlib.sha256()
    total = path.stat().st_size
    stage, done, legacy = f"hash {path.name}", 0, b""
    with path.open("rb") as stream:
        head = stream.read(512)
        start = 8 + int.from_bytes(head[:8], "little") if weights_alone and is_safetensors(head) else total
        stream.seek(0)
        if total >= _SHOW_PROGRESS_FROM:
            yield progress(stage, 0, total)
        while block := stream.read(_BLOCK):
            whole.update(block)
            if done + len(block) > start:
                weights.update(memoryview(block)[max(0, start - done) :])
            if done <= _LEGACY_AT < done + len(block):
                legacy = block[_LEGACY_AT - done :][:_LEGACY_SIZE]
            before, done = done, done + len(block)
            if total >= _SHOW_PROGRESS_FROM and (report_every(done, before) or done == total):
                yield progress(stage, done, total)
    sha256 = whole.hexdigest()
    inner = weights.hexdigest() if start < total else ""
    return Hashes(sha256, sha256[:10], hashlib.sha256(legacy).hexdigest()[:8] if legacy else "", inner, inner[:12])


def pickle_globals(path: Path) -> tuple[str, ...]:
    """Return the names that the pickles of a file ask for, as far as they can be read; nothing is imported or run.

    This is for showing only: what may be opened is decided by ``open_checkpoint``. Files before torch 0.1.10 (tar)
    and files that are no pickles give none.
    """
    found: dict[str, None] = {}
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as stream:
            head = stream.read(512)
            if is_safetensors(head):
                return ()
            if head.startswith(b"PK"):
                members = read_members(stream, size, str(path)).values()
                places = [(m.offset, m.size) for m in members if m.name.endswith(".pkl")]
            else:
                places = [(0, size)]
            for offset, length in places[:_STREAM_OF_PICKLES]:
                stream.seek(offset)
                data = io.BytesIO(stream.read(min(length, MAX_BYTES)))
                for _ in range(_STREAM_OF_PICKLES):
                    _names_of_one(data, found)
    except (OSError, ModelError, ValueError, struct.error, IndexError, OverflowError, MemoryError):
        pass  # cut off or hostile: what was found before that is still worth showing
    return tuple(sorted(found))


def _names_of_one(data: io.BytesIO, found: dict[str, None]) -> None:
    """Collect the globals of one pickle; those put together on the stack are followed as far as texts go."""
    if bytes(data.getbuffer()[data.tell() : data.tell() + 1]) != b"\x80":
        return
    texts: list[str] = []
    memo: dict[Any, str] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            found[printable(str(argument).replace(" ", "."))] = None
        elif name == "STACK_GLOBAL":
            found[printable(".".join(texts[-2:]))] = None
        elif "UNICODE" in name or "STRING" in name:
            texts.append(str(argument)[:_MAX_TEXT])
        elif name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else "?"
        elif name.endswith("PUT"):
            memo[argument] = texts[-1] if texts else "?"
        elif name.endswith("GET"):
            texts.append(memo.get(argument, "?"))
        if count >= MAX_OPERATIONS or len(found) >= _MAX_GLOBALS:
            return


def printable(text: str, limit: int = _MAX_TEXT) -> str:
    """Return a stranger's text without what could steer a terminal or hide in it, and not longer than ``limit``."""
    plain = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    plain = " ".join(plain.split())
    return plain if len(plain) <= limit else f"{plain[: limit - 3]}..."


_STATED = (
    ("title", ("modelspec.title", "ss_output_name")),
    ("author", ("modelspec.author",)),
    ("description", ("modelspec.description",)),
    ("licence", ("modelspec.license",)),
    ("trigger", ("modelspec.trigger_phrase",)),
    ("architecture", ("modelspec.architecture", "ss_base_model_version")),
    ("prediction", ("modelspec.prediction_type",)),
    ("version of lorasmith", ("lorasmith",)),
    ("made with", ("modelspec.implementation", "ss_network_module")),
    ("trained on", ("base", "ss_sd_model_name")),
    ("hash of that base", ("base_sha256", "ss_new_sd_model_hash", "ss_sd_model_hash")),
    ("rank", ("ss_network_dim",)),
    ("alpha", ("ss_network_alpha",)),
    ("network arguments", ("ss_network_args",)),
    ("steps", ("steps", "ss_steps")),
    ("steps planned", ("ss_max_train_steps",)),
    ("epoch", ("ss_epoch",)),
    ("epochs planned", ("ss_num_epochs",)),
    ("pictures", ("pictures", "ss_num_train_images")),
    ("regularisation pictures", ("ss_num_reg_images",)),
    ("batch", ("ss_total_batch_size", "ss_batch_size_per_device")),
    ("accumulation", ("ss_gradient_accumulation_steps",)),
    ("resolution", ("resolution", "ss_resolution", "modelspec.resolution")),
    ("learning rate", ("ss_learning_rate",)),
    ("learning rate of the UNet", ("ss_unet_lr",)),
    ("learning rate of the text encoder", ("ss_text_encoder_lr",)),
    ("schedule", ("ss_lr_scheduler",)),
    ("warm-up steps", ("ss_lr_warmup_steps",)),
    ("optimizer", ("ss_optimizer",)),
    ("precision", ("ss_mixed_precision",)),
    ("clip skip", ("ss_clip_skip", "modelspec.encoder_layer")),
    ("noise offset", ("ss_noise_offset",)),
    ("min SNR gamma", ("ss_min_snr_gamma",)),
    ("seed", ("ss_seed",)),
    ("comment", ("ss_training_comment",)),
    ("date", ("modelspec.date",)),
)
_EMPTY = ("", "None", "null", "{}", "[]")


def stated(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a safetensors file says of how it was made, in a few words for each thing.

    Read are the keys of sd-scripts (ss_*), of the model specification of Stability AI (modelspec.*,
    https://github.com/Stability-AI/ModelSpec) and of lorasmith itself.
    """
    said = {}
    for label, keys in _STATED:
        values = [metadata[key] for key in keys if metadata.get(key, "") not in _EMPTY]
        if values:
            said[label] = printable(values[0])
    for label, key in (("training began", "ss_training_started_at"), ("training ended", "ss_training_finished_at")):
        if when := _moment(metadata.get(key, "")):
            said[label] = when
    said |= _data(metadata)
    return said


def stated_hash(metadata: Mapping[str, str]) -> str:
    """Return the hash of its weights alone that a safetensors file was saved with, or ""."""
    said = metadata.get("sshs_model_hash") or metadata.get("modelspec.hash_sha256", "")
    return said.lower().removeprefix("0x")


def _moment(text: str) -> str:
    try:
        return datetime.fromtimestamp(float(text), timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return ""


def _data(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the folders and the commonest tags that sd-scripts noted."""
    said = {}
    folders = _json(metadata.get("ss_dataset_dirs", ""))
    if folders:
        counts = [
            f"{name} ({value.get('img_count', '?')} pictures x {value.get('n_repeats', '?')})"
            for name, value in folders.items()
            if isinstance(value, dict)
        ]
        said["folders"] = printable(", ".join(counts))
    tags: Counter[str] = Counter()
    for found in _json(metadata.get("ss_tag_frequency", "")).values():
        if isinstance(found, dict):
            tags.update({str(tag).strip(): n for tag, n in found.items() if isinstance(n, int)})
    if tags:
        common = ", ".join(f"{tag} ({count})" for tag, count in tags.most_common(8))
        said["commonest tags"] = printable(f"{common}; {len(tags)} in all")
    return said


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
