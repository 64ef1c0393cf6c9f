"""How the learning rate goes over the steps."""

from __future__ import annotations

import math
from typing import Literal


def multiplier(kind: Literal["constant", "cosine", "linear"], step: int, steps: int, warmup: int) -> float:
    """Return what the learning rate is multiplied by in ``step``, counted from 1 to ``steps``.

    It rises in equal parts to 1 in step ``warmup``; then it stays, or falls along half a cosine (Loshchilov and
    Hutter 2017, one cycle) or a line, so that the step after the last would get 0.
    """
    if step <= warmup:
        return step / warmup
    if kind == "constant":
        return 1.0
    gone = (step - 1 - warmup) / max(1, steps - warmup)
    return 1 - gone if kind == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
