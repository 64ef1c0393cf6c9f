"""Which texts say nearly the same in nearly the same words."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

# Both found on the captions of real photos: below them lie pairs that a reader calls different.
WEIGHED, COUNTED = 0.65, 0.75
_STOP = "a an and are as at both by each for from has have in is it its of on or that the their this to with"
_STOP_WORDS = frozenset(_STOP.split())
_MOST_WORDS = 200  # of one text; what comes after says nothing that its beginning has not


def alike(texts: Sequence[str], *, weighed: float = WEIGHED, counted: float = COUNTED) -> Iterator[tuple[int, int]]:
    """Yield every pair of texts that are nearly the same, as their indices, the lower first.

    Two texts are if the words they share in the same order are most of their words (Dice's coefficient on the longest
    common subsequence), by number and also by weight. A word weighs more the fewer texts have it (inverse document
    frequency), so that what the whole set says counts little. Words are compared without their endings, and articles
    and the like do not count.

    Args:
        texts: any number; a second for 5,000 captions.
        weighed: the least share by weight, 0 to 1.
        counted: the least share by number, 0 to 1.
    """
    words = [_content(text) for text in texts]
    spread = Counter(word for each in words for word in set(each))
    weight = {word: math.log((len(texts) + 1) / count) for word, count in spread.items()}
    even = dict.fromkeys(spread, 1.0)
    counts = [Counter(each) for each in words]
    for a, b in _candidates(words, weight, weighed):
        both = sum(min(times, counts[b][word]) for word, times in counts[a].items() if word in counts[b])
        if both * 2 < counted * (len(words[a]) + len(words[b])):
            continue
        if _share(words[a], words[b], even) >= counted and _share(words[a], words[b], weight) >= weighed:
            yield a, b


def _content(text: str) -> list[str]:
    found = re.findall(r"[^\W_]+(?:['’][^\W_]+)?", text.lower())
    kept = [re.sub(r"(?<=\w{3})(?:es|s|ed|ing)$", "", word) for word in found if word not in _STOP_WORDS]
    return kept[:_MOST_WORDS]


def _candidates(words: Sequence[list[str]], weight: dict[str, float], least: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs that share enough weight in any order, which is at least what they share in the same order."""
    totals = np.array([sum(weight[word] for word in each) for each in words], dtype=np.float64)
    terms = [[(word, time) for word, times in Counter(each).items() for time in range(times)] for each in words]
    listed: dict[tuple[str, int], list[int]] = defaultdict(list)  # the texts that have a word so many times
    for b, each in enumerate(terms):
        for term in each:
            listed[term].append(b)
    holders = {term: np.array(texts, dtype=np.int32) for term, texts in listed.items()}
    before: Counter[tuple[str, int]] = Counter()
    for b, each in enumerate(terms):
        shared = np.zeros(b)
        for term in each:
            shared[holders[term][: before[term]]] += weight[term[0]]
            before[term] += 1
        whole = totals[:b] + totals[b]
        for a in np.flatnonzero((2 * shared >= least * whole * (1 - 1e-9)) & (whole > 0)):
            yield int(a), b


def _share(a: Sequence[str], b: Sequence[str], weight: dict[str, float]) -> float:
    """Return Dice's coefficient on the heaviest common subsequence."""
    whole = sum(weight[word] for word in a) + sum(weight[word] for word in b)
    start = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    rest = min(len(a), len(b)) - start
    end = next((i for i in range(rest) if a[-1 - i] != b[-1 - i]), rest)
    common = sum(weight[word] for word in (*a[:start], *a[len(a) - end :]))
    a, b = a[start : len(a) - end], b[start : len(b) - end]
    above = [0.0] * (len(b) + 1)
    for word in a:
        row = [0.0]
        for j, other in enumerate(b):
            row.append(above[j] + weight[word] if word == other else max(above[j + 1], row[j]))
        above = row
    return 2 * (common + above[-1]) / whole
