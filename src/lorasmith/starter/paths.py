"""Where the built-in models lie. Standard library only, so that any module may ask."""

from __future__ import annotations

from pathlib import Path

_WEIGHTS = Path(__file__).parent / "weights"


def starter_folder() -> Path:
    """Return the starter base: a Stable Diffusion pipeline folder in the Hugging Face layout."""
    return _WEIGHTS / "starter"


def judge_folder() -> Path:
    """Return the judge: a CLIP model folder in the Hugging Face layout."""
    return _WEIGHTS / "judge"


def vocabulary_file() -> Path:
    """Return CLIP's list of byte-pair merges (gzip), from the MIT-licensed open_clip project."""
    return Path(__file__).parent / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
