from __future__ import annotations

import json
from collections import Counter
from itertools import chain, islice

import pytest

from lorasmith.dataset.sampler import BalancedSampler

LABELS = ["axe"] * 10 + ["spear"] * 3 + ["whip"]


def draws(sampler: BalancedSampler, batches: int) -> list[int]:
    return list(chain.from_iterable(islice(sampler, batches)))


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    stream = draws(BalancedSampler(LABELS, 4, 0, balance=False), 7)
    first, second = stream[:14], stream[14:]
    assert sorted(first) == sorted(second) == list(range(14))
    assert first != second


def test_balanced_classes_take_turns_and_use_every_picture_equally() -> None:
    stream = draws(BalancedSampler(LABELS, 7, 0, balance=True), 30)
    for count in range(1, len(stream)):
        seen = Counter(LABELS[i] for i in stream[:count])
        assert max(seen[label] for label in set(LABELS)) - min(seen[label] for label in set(LABELS)) <= 1
    axes = Counter(i for i in stream if LABELS[i] == "axe")
    assert set(axes.values()) == {7}


@pytest.mark.parametrize("balance", [True, False])
def test_a_restored_sampler_goes_on_exactly(balance: bool) -> None:
    sampler = BalancedSampler(LABELS, 5, 3, balance)
    draws(sampler, 11)
    state = json.loads(json.dumps(sampler.state()))
    expected = draws(sampler, 20)
    resumed = BalancedSampler(LABELS, 5, 3, balance)
    resumed.restore(state)
    assert draws(resumed, 20) == expected
    assert draws(BalancedSampler(LABELS, 5, 4, balance), 20) != draws(BalancedSampler(LABELS, 5, 3, balance), 20)


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        BalancedSampler([], 4, 0, balance=True)
