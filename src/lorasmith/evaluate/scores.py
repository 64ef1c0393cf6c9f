"""Rates with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """How often something was so: ``hits`` of ``count``."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        """The rate, 0 to 1; 0 of nothing is 0."""
        return self.hits / self.count if self.count else 0.0

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Return Wilson's score interval (Wilson 1927), 95 % by default."""
        n = self.count
        if n == 0:
            return 0.0, 1.0
        p, zz = self.value, z * z
        centre = (p + zz / (2 * n)) / (1 + zz / n)
        half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{100 * self.value:.1f} % ({100 * low:.0f} to {100 * high:.0f}, n = {self.count})"


def rate(answers: Iterable[bool]) -> Rate:
    """Count the true ones."""
    counted = [bool(a) for a in answers]
    return Rate(sum(counted), len(counted))
