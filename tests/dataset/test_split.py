from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lorasmith.dataset.read import Dataset, Example
from lorasmith.dataset.split import split


def dataset(classes: dict[str, int], *, copies: int = 1) -> Dataset:
    examples = [
        Example(
            Path(f"{label}/{i}.png"), label, label, 8, 8, hashlib.sha256(f"{label}{i // copies}".encode()).hexdigest()
        )
        for label, count in classes.items()
        for i in range(count)
    ]
    return Dataset(tuple(examples), (), len(examples))


def test_pictures_to_preserve_are_trained_on_and_do_not_count() -> None:
    plain = dataset({"axe": 40})
    kept = tuple(replace(e, preserved=True) for e in dataset({"kept": 30}).examples)
    same = (replace(plain.examples[0], preserved=True),)  # even where the content is that of one held back
    both = Dataset((*plain.examples, *kept, *same), (), 71)
    for seed in range(20):
        training, validation = split(both, 0.2, seed)
        alone = split(plain, 0.2, seed)
        assert validation == alone[1]
        assert training == (*alone[0], *kept, *same)


@pytest.mark.parametrize(
    ("count", "fraction", "held"),
    [
        (79, 0.1, 8),
        (40, 0.01, 4),
        (39, 0.01, 0),
        (40, 0.0, 0),
        (10, 0.5, 5),
        (11, 0.5, 5),
        (3, 0.1, 0),
        (1, 0.5, 0),
        (5, 0.1, 1),
    ],
)
def test_how_many_are_held_back(count: int, fraction: float, held: int) -> None:
    training, validation = split(dataset({"axe": count}), fraction, 0)
    assert (len(training), len(validation)) == (count - held, held)


def test_every_class_gives_its_share() -> None:
    _, validation = split(dataset({"axe": 100, "spear": 100, "trident": 50, "whip": 10}), 0.1, 0)
    assert Counter(e.label for e in validation) == {"axe": 10, "spear": 10, "trident": 5, "whip": 1}


def test_order_and_names_do_not_matter() -> None:
    data = dataset({"axe": 30, "spear": 20})
    shuffled = [Example(Path(f"{i}.png"), e.caption, e.label, 8, 8, e.sha256) for i, e in enumerate(data.examples)]
    random.Random(1).shuffle(shuffled)
    held = {e.sha256 for e in split(data, 0.2, 3)[1]}
    assert held == {e.sha256 for e in split(Dataset(tuple(shuffled), (), 50), 0.2, 3)[1]}
    assert held != {e.sha256 for e in split(data, 0.2, 4)[1]}


def test_copies_stay_together_and_nothing_is_lost() -> None:
    rng = random.Random(0)
    for _ in range(200):
        classes = {f"class{i}": rng.randint(1, 60) for i in range(rng.randint(1, 5))}
        data = dataset(classes, copies=rng.randint(1, 6))
        fraction = rng.choice([0.0, 0.02, 0.1, 0.25, 0.5])
        training, validation = split(data, fraction, rng.randint(0, 9))
        assert sorted((*training, *validation), key=repr) == sorted(data.examples, key=repr)
        assert not {e.sha256 for e in training} & {e.sha256 for e in validation}
        assert len(validation) <= len(data.examples) / 2
        if fraction == 0:
            assert not validation
        elif len(data.examples) >= 40:
            assert len(validation) >= 4
