from __future__ import annotations

import gzip
import random
from itertools import islice

import pytest

from lorasmith.dataset.tokens import cut_at, token_count
from lorasmith.starter.paths import vocabulary_file

TEXTS = [
    "", "an axe", "A Broad-Bladed AXE!!", "it's we're i'd they'll x'y", "héllo wörld ①²½ 漢字 İstanbul ﬁne", "🗡️🪓 x",
    "  lead\t tail \n", "1234 5.67 x86_64", "a" * 300, "zxqv " * 90, "cafe\u0301 e\u0301e\u0301 n\u0303",
    "!?!?...---___",
]  # fmt: skip


@pytest.fixture(scope="module")
def clip():  # type: ignore[no-untyped-def]
    """CLIP's own tokenizer, as transformers makes it from the whole list of merges."""
    from transformers import CLIPTokenizer

    with gzip.open(vocabulary_file(), "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in islice(file, 1, 49152 - 256 - 2 + 1)]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(f"{x}</w>" for x in letters), *("".join(m) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == 49408
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)


def test_counts_are_clips_own(clip) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(0)
    letters = "abcdefghij klmno pqrst uvwxyz ,.!?'0123456789 éüñ 漢🗡 \u0301"
    texts = TEXTS + ["".join(rng.choice(letters) for _ in range(rng.randint(0, 120))) for _ in range(300)]
    for text in texts:
        assert token_count(text) == len(clip(text).input_ids), text


def test_what_is_cut_is_what_clip_cuts(clip) -> None:  # type: ignore[no-untyped-def]
    for text in [t * 30 for t in TEXTS if t]:
        for limit in (3, 20, 77):
            kept, cut = cut_at(text, limit)
            assert kept + cut == text
            assert bool(cut) == (len(clip(text).input_ids) > limit)
            seen = clip(text, truncation=True, max_length=limit, return_offsets_mapping=True)
            end = len(kept) if not cut else len(kept.rstrip("\u0301"))
            assert not cut or seen.offset_mapping[-2][1] in (end, len(kept))


def test_half_a_surrogate_pair_and_no_room_at_all() -> None:
    assert token_count("x\ud800y") == token_count("x?y")
    assert cut_at("an axe", 2) == ("", "an axe")
