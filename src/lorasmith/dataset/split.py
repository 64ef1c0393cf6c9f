"""Hold some pictures back to measure on."""

from __future__ import annotations

import hashlib
from collections import Counter

from lorasmith.dataset.read import Dataset, Example

_ENOUGH = 40  # pictures, from which on at least _LEAST are held back
_LEAST = 4


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide a dataset into pictures to train on and pictures to validate on, each in the dataset's order.

    Which are held back depends on what the pictures contain, not on their names or order. Every class gives its
    share, and files of identical content stay together. Of 40 pictures or more at least 4 are held back, of any
    number at most half, and none if ``fraction`` is 0. Pictures to preserve are trained on and do not count.

    Args:
        dataset: the pictures.
        fraction: the share to hold back, 0 to 0.5.
        seed: chooses another part of the same size.
    """
    ours = tuple(e for e in dataset.examples if not e.preserved)
    count = len(ours)
    target = min(int(count * fraction + 0.5), count // 2)
    least = _LEAST if fraction > 0 and count >= _ENOUGH else 0
    target = max(target, least)
    held: set[str] = set()
    taken = 0
    for sha, copies in _systematic_order(ours, seed):
        if taken + copies <= target or (taken < least and taken + copies <= count // 2):
            held.add(sha)
            taken += copies
    validation = tuple(e for e in ours if e.sha256 in held)
    training = tuple(e for e in dataset.examples if e.preserved or e.sha256 not in held)
    return training, validation


def _systematic_order(examples: tuple[Example, ...], seed: int) -> list[tuple[str, int]]:
    """Return each content hash and its number of copies, so that any beginning holds every class's share.

    The contents of a class are put in random order and spread evenly over 0 to 1; the classes are then merged.
    """
    copies = Counter(e.sha256 for e in examples)
    label_of = {e.sha256: e.label for e in sorted(examples, key=lambda e: e.label, reverse=True)}
    sizes = Counter(label_of[e.sha256] for e in examples)
    key = {sha: hashlib.sha256(f"{seed}:{sha}".encode()).hexdigest() for sha in copies}
    before: Counter[str] = Counter()
    order = []
    for sha in sorted(copies, key=key.__getitem__):
        label = label_of[sha]
        order.append(((before[label] + copies[sha] / 2) / sizes[label], key[sha], sha))
        before[label] += copies[sha]
    return [(sha, copies[sha]) for _, _, sha in sorted(order)]
