"""Whether captions are the renderer's, so that the judge that comes with lorasmith understands them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from lorasmith.starter.backgrounds import BACKGROUNDS
from lorasmith.starter.renderer import BLOSSOM_PHRASES, COLOURS
from lorasmith.starter.shapes import KINDS

_OURS = 0.95  # of the captions


def are_renderers(captions: Sequence[str]) -> bool:
    """Return whether nearly all captions are made of the renderer's words alone."""
    ours = [set(_words(caption)) <= _vocabulary() for caption in captions if caption]
    return bool(ours) and sum(ours) >= _OURS * len(ours)


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    texts = ["a an with photo picture of", *COLOURS, *KINDS, *BLOSSOM_PHRASES]
    texts += [phrase for _, phrases in BACKGROUNDS.values() for phrase in phrases]
    texts += [f"{kind.main} {kind.second}" for kind in KINDS.values()]
    return frozenset(word for text in texts for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
