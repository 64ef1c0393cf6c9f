"""Which pictures come next: an endless stream that can be taken up again anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


class BalancedSampler(Iterator[list[int]]):
    """An endless iterator of batches of indices.

    Every index of a class is drawn once before any of that class is drawn again, in a new order each time. With
    ``balance`` the classes take turns, so that after any number of draws their counts differ by at most one;
    without it all pictures are one class. What is drawn is a function of the seed and the number of draws alone,
    so the state is that number.

    Args:
        labels: the class of each picture.
        batch: indices in a batch.
        seed: the run's seed.
        balance: draw every class equally often, whatever its size.

    Raises:
        ValueError: there are no pictures.
    """

    def __init__(self, labels: Sequence[str], batch: int, seed: int, balance: bool) -> None:
        if not labels:
            raise ValueError("no pictures to draw from")
        classes: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            classes.setdefault(label if balance else "", []).append(index)
        self._classes = [classes[label] for label in sorted(classes)]
        self._batch = batch
        self._seed = seed
        self._drawn = 0
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def __next__(self) -> list[int]:
        return [self._draw() for _ in range(self._batch)]

    def state(self) -> dict[str, int]:
        """Return what ``restore`` needs, as JSON-ready values."""
        return {"drawn": self._drawn}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from where ``state`` was taken by a sampler of the same labels and seed."""
        self._drawn = state["drawn"]

    def _draw(self) -> int:
        turn, place = divmod(self._drawn, len(self._classes))
        which = self._order(-1, turn, len(self._classes))[place]
        indices = self._classes[which]
        epoch, position = divmod(turn, len(indices))
        self._drawn += 1
        return indices[self._order(which, epoch, len(indices))[position]]

    def _order(self, which: int, epoch: int, count: int) -> list[int]:
        """Return the order of a class (-1: of the classes) in one epoch; the latest of each is kept."""
        known = self._orders.get(which)
        if known is None or known[0] != epoch:
            order = list(range(count))
            random.Random(f"{self._seed}:{which}:{epoch}").shuffle(order)
            known = self._orders[which] = (epoch, order)
        return known[1]
