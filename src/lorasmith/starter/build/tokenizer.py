"""Writes the starter's tokenizer: CLIP's own byte-pair encoding, cut to its first few thousand merges."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from lorasmith.starter.paths import vocabulary_file

MERGES = 4608
MAX_TOKENS = 48
_START, _END = "<|startoftext|>", "<|endoftext|>"


def _byte_letters() -> list[str]:
    """Return CLIP's printable stand-ins for the 256 byte values, in its order (Radford et al. 2019, byte-level BPE)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printable]
    return letters + [chr(256 + i) for i in range(256 - len(printable))]


def write_tokenizer(folder: Path, merges: int = MERGES, max_tokens: int = MAX_TOKENS) -> int:
    """Write a CLIPTokenizer folder and return its vocabulary's size."""
    with gzip.open(vocabulary_file(), "rt", encoding="utf-8") as file:
        pairs = file.read().split("\n")[1 : merges + 1]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(p.split()) for p in pairs), _START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": max_tokens, "do_lower_case": True, "errors": "replace",
        "add_prefix_space": False, "bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    specials = {"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=1), encoding="utf-8")
    return len(tokens)
