"""The starter's tokenizer: CLIP's own byte-pair encoding, cut to its first few thousand merges."""

from __future__ import annotations

from pathlib import Path

from lorasmith.model import clip_tokenizer

MERGES = 4608
MAX_TOKENS = 48


def write_tokenizer(folder: Path, merges: int = MERGES, max_tokens: int = MAX_TOKENS) -> int:
    """Write a CLIPTokenizer folder and return its vocabulary's size."""
    return clip_tokenizer.write_tokenizer(folder, merges, max_tokens)
