"""What the judge is asked about a picture of the renderer's world, as choices with wordings."""

from __future__ import annotations

from lorasmith.starter.renderer import BLOSSOM_PHRASES, COLOURS, article
from lorasmith.starter.shapes import KINDS

Choices = dict[str, tuple[str, ...]]


def kind_choices() -> Choices:
    """Which kind of item is it?"""
    return {kind: (article(kind), f"a photo of {article(kind)}", f"a picture of {article(kind)}") for kind in KINDS}


def blossom_choices(kind: str) -> Choices:
    """Does this item bear blossoms?"""
    return {
        "plain": (article(kind), f"a plain {kind}"),
        "blossom": tuple(f"{article(kind)} {phrase}" for phrase in BLOSSOM_PHRASES),
    }


def colour_choices(kind: str) -> Choices:
    """Which colour is the main part of this item?"""
    return {c: (article(f"{c} {kind}"), f"a photo of {article(f'{c} {kind}')}") for c in COLOURS}
