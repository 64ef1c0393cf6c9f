"""How many tokens a caption has, and what a text encoder never sees of it. CLIP's own byte-pair encoding; no torch."""

from __future__ import annotations

import gzip
import unicodedata
from functools import lru_cache
from itertools import islice

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from lorasmith.starter.paths import vocabulary_file

LIMIT = 77  # tokens that Stable Diffusion's text encoder reads, the marks of start and end among them
_MARKS = 2
_MERGES = 49152 - 256 - _MARKS  # those of the list that CLIP was trained with (openai/CLIP, simple_tokenizer.py)
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def token_count(text: str) -> int:
    """Return how many tokens a caption has, the marks of start and end counted: more than ``LIMIT`` are cut."""
    return len(_token_ends(text)) + _MARKS


def cut_at(text: str, limit: int = LIMIT) -> tuple[str, str]:
    """Return what a text encoder of ``limit`` tokens reads of a caption, and what it never sees.

    The two parts together are the caption. A word may be cut in two, as it is for the encoder.
    """
    ends = _token_ends(text)
    content = max(0, limit - _MARKS)
    if len(ends) <= content:
        return text, ""
    end = ends[content - 1] if content else 0
    while end < len(text) and unicodedata.combining(text[end]):  # an accent stays with its letter
        end += 1
    return text[:end], text[end:]


def _token_ends(text: str) -> list[int]:
    """Return where in ``text`` each token ends."""
    sound = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is one odd character
    return [end for _, end in _tokenizer().encode(sound).offsets]


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    """Return CLIP's tokenizer, as transformers makes it, from the list of merges that ships with lorasmith."""
    with gzip.open(vocabulary_file(), "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in islice(file, 1, _MERGES + 1)]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), _START, _END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
