"""How much the pictures of a class differ from each other in background, composition and lighting.

The figure is Rao's quadratic entropy (Rao, "Diversity and dissimilarity coefficients", 1982): the mean over all pairs
of how different the two are, 0 to 1, where 0 is alike and 1 is as different as can be. Half of it means that of two
pictures drawn at random one half is new; 1 / (1 - figure) is how many wholly different kinds would be as varied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorasmith.dataset.measures import Measures

LOW = 0.30  # a class below this in anything is reported
PLAIN_SHARE = 0.8
FEWEST = 5  # pictures, below which there is nothing to say about variety
ASPECTS = ("background", "composition", "light")
_SCALE = {"background": 22.0, "composition": 0.42, "light": 18.0}  # the distance at which two are 63 % different
_SAMPLE = 1500  # pictures of a class that are compared; more make the figure no better
_SHOWN = 6

_Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Variety:
    """The variety of one class.

    Args:
        figures: for each of ``ASPECTS``, 0 (all alike) to 1.
        most_alike: for each aspect, the indices of the pictures that have the most of the others near them.
        plain: the share of pictures with a plain background.
    """

    figures: Mapping[str, float]
    most_alike: Mapping[str, tuple[int, ...]]
    plain: float

    @property
    def kinds(self) -> dict[str, float]:
        """How many wholly different kinds would be as varied, for each aspect."""
        return {aspect: 1 / max(1e-3, 1 - figure) for aspect, figure in self.figures.items()}

    @property
    def low(self) -> Iterator[str]:
        """The aspects in which the class has little variety."""
        return (aspect for aspect in ASPECTS if self.figures.get(aspect, 1.0) < LOW)


def variety(measures: Sequence[Measures]) -> Variety | None:
    """Return the variety of the pictures of one class; None where they are too few to say.

    Args:
        measures: one for each picture. Of many, evenly spread ones are compared.
    """
    if len(measures) < FEWEST:
        return None
    chosen = np.unique(np.linspace(0, len(measures) - 1, min(_SAMPLE, len(measures))).round().astype(int))
    figures, most_alike = {}, {}
    for aspect in ASPECTS:
        different = _differences(aspect, [measures[i] for i in chosen])
        count = len(chosen)
        figures[aspect] = float(different.sum() / (count * (count - 1)))
        order = np.argsort(different.sum(axis=1), kind="stable")[:_SHOWN]
        most_alike[aspect] = tuple(int(chosen[i]) for i in order)
    return Variety(figures, most_alike, sum(m.plain for m in measures) / len(measures))


def _differences(aspect: str, measures: Sequence[Measures]) -> _Float:
    """Return how different each two are in an aspect, float32 (n, n), 0 to 1."""
    vectors = np.stack([_vector(aspect, m) for m in measures])
    squared = (vectors**2).sum(axis=1)
    distance = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * vectors @ vectors.T, 0))
    different = 1 - np.exp(-((distance / _SCALE[aspect]) ** 2))
    np.fill_diagonal(different, 0)
    return np.asarray(different, dtype=np.float32)


def _vector(aspect: str, measures: Measures) -> _Float:
    if aspect == "background":
        return measures.background
    return measures.light if aspect == "light" else np.sqrt(measures.composition)  # so a distance is Hellinger's
