"""The judge's verdict on pictures of the renderer's world: kind, colour, blossom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorasmith.model.judge import Judge
from lorasmith.starter.questions import blossom_choices, colour_choices, kind_choices


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in each picture. ``blossom`` and ``colour`` are asked of the kind that was wanted."""

    kinds: list[str]
    colours: list[str]
    blossoms: list[bool]

    def right_kinds(self, wanted: Sequence[str]) -> list[bool]:
        """Return for each picture whether its kind is the one that was wanted."""
        return [seen == want for seen, want in zip(self.kinds, wanted)]


def verdict(judge: Judge, pictures: NDArray[np.uint8], wanted: Sequence[str]) -> Verdict:
    """Ask the judge about pictures, uint8 (N, H, W, 3), of the kinds ``wanted``; it looks at eight views of each."""
    seen = judge.embed_pictures(pictures, views=True)
    kinds = list(kind_choices())
    best = (seen @ judge.embed_choices(kind_choices()).T).argmax(1).tolist()
    colours, blossoms = [""] * len(wanted), [False] * len(wanted)
    for kind in dict.fromkeys(wanted):
        at = [i for i, k in enumerate(wanted) if k == kind]
        asked = colour_choices(kind)
        colour = (seen[at] @ judge.embed_choices(asked).T).argmax(1).tolist()
        blossom = (seen[at] @ judge.embed_choices(blossom_choices(kind)).T).argmax(1).tolist()
        for i, c, b in zip(at, colour, blossom):
            colours[i], blossoms[i] = list(asked)[c], b == 1
    return Verdict([kinds[b] for b in best], colours, blossoms)
