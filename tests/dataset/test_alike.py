from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations

from lorasmith.dataset.alike import COUNTED, WEIGHED, alike


def by_hand(texts: list[str]) -> set[tuple[int, int]]:
    """Compare all pairs, without any shortcut."""
    words = [text.split() for text in texts]
    spread = Counter(w for each in words for w in set(each))
    weight = {w: math.log((len(texts) + 1) / n) for w, n in spread.items()}

    def share(a: list[str], b: list[str], of: dict[str, float]) -> float:
        table = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + of[x] if x == y else max(table[i][j + 1], table[i + 1][j])
        whole = sum(of[w] for w in a) + sum(of[w] for w in b)
        return 2 * table[-1][-1] / whole if whole else 0.0

    even = dict.fromkeys(weight, 1.0)
    pairs = combinations(range(len(texts)), 2)
    return {
        (i, j)
        for i, j in pairs
        if share(words[i], words[j], weight) >= WEIGHED and share(words[i], words[j], even) >= COUNTED
    }


def test_shortcuts_lose_nothing() -> None:
    rng = random.Random(0)
    vocabulary = [f"{a}{b}k" for a in "bcdfgh" for b in "aeiou"]  # no endings to cut off, no stop words
    for _ in range(20):
        base = [[rng.choice(vocabulary) for _ in range(rng.randint(1, 12))] for _ in range(15)]
        texts = [" ".join(each) for each in base]
        for each in base:  # and something like each
            changed = list(each)
            changed[rng.randrange(len(changed))] = rng.choice(vocabulary)
            texts.append(" ".join(changed))
        assert set(alike(texts)) == by_hand(texts)


def test_order_and_rare_words_count() -> None:
    swapped = ["a red axe with a blue handle", "a blue axe with a red handle"]
    others = [f"a {kind} on {place}" for kind in ("bow", "key", "mug") for place in ("sand", "tiles", "grass")]
    assert list(alike([*swapped, *others])) == []
    same = ["a traditional logger's axe with a simple blade", "A traditional logger's axe, with simple blades"]
    assert list(alike([*same, *others])) == [(0, 1)]
    assert list(alike([])) == list(alike(["", "a the", "x"])) == []
