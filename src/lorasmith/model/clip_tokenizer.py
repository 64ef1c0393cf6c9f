"""CLIP's byte-pair tokenizer, made from the list of merges in this package: no download is needed.

The whole list gives the 49,408 tokens of SD 1.x; its first merges alone give a smaller vocabulary that is as valid
(the starter has 4,608 merges). Source: github.com/openai/CLIP, clip/simple_tokenizer.py (MIT), and
bpe_simple_vocab_16e6.txt.gz as the MIT-licensed open_clip project ships it.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from lorasmith.errors import ModelError
from lorasmith.starter.paths import vocabulary_file

MERGES = 48_894  # of SD 1.x
_START, _END = "<|startoftext|>", "<|endoftext|>"
_LETTERS = 512  # every byte twice: inside a word and at its end


def _byte_letters() -> list[str]:
    """Return CLIP's printable stand-ins for the 256 byte values, in its order (Radford et al. 2019, byte-level BPE)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printable]
    return letters + [chr(256 + i) for i in range(256 - len(printable))]


def write_tokenizer(folder: Path, merges: int = MERGES, max_tokens: int = 77) -> int:
    """Write the folder of a CLIPTokenizer and return its vocabulary's size.

    Args:
        merges: how many merges of CLIP's list it knows.
        max_tokens: of a text, the first and last marks included.
    """
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


def clip_tokenizer(vocabulary: int, max_tokens: int) -> Any:
    """Return CLIP's tokenizer with a vocabulary of a size, for a text encoder that came without one.

    Raises:
        ModelError: CLIP's list of merges gives no vocabulary of that size.
    """
    from transformers import CLIPTokenizer

    merges = merges_of(vocabulary)
    with tempfile.TemporaryDirectory(prefix="lorasmith-") as folder:
        write_tokenizer(Path(folder), merges, max_tokens)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def merges_of(vocabulary: int) -> int:
    """Return how many of CLIP's merges make a vocabulary of a size.

    Raises:
        ModelError: none do.
    """
    merges = vocabulary - _LETTERS - 2
    if not 0 <= merges <= MERGES:
        raise ModelError(
            f"The text encoder knows {vocabulary:,} tokens; CLIP's tokenizer has {MERGES + _LETTERS + 2:,}.",
            fix="A base with its own tokenizer can be read as a folder in the diffusers layout only.",
        )
    return merges
