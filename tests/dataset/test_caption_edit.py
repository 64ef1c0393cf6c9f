from __future__ import annotations

import random

import pytest

from lorasmith.dataset.caption_edit import Edits, parse_replacements, with_articles, without_repeats
from lorasmith.errors import RecipeError


@pytest.mark.parametrize(
    ("edits", "before", "after"),
    [
        (Edits(trigger="zx"), "an axe", "zx, an axe"),
        (Edits(trigger="zx"), "the ZX axe", "the ZX axe"),
        (Edits(prefix="a photo of"), "an axe", "a photo of an axe"),
        (Edits(suffix=", on white"), "An old axe.", "An old axe, on white"),
        (Edits(suffix="at night"), "an axe", "an axe at night"),
        (Edits(replace=(("hatchet", "axe"),)), "Hatchet and hatchet, hatchets", "Axe and axe, hatchets"),
        (Edits(replace=(("axe", "battle axe"),)), "an axe, a battle axe", "an battle axe, a battle axe"),
        (Edits(replace=(("of course", ""),)), "an axe of  course, red", "an axe, red"),
        (Edits(replace=(("c++", "C"),)), "c++ book", "C book"),
        (Edits(dedup=True), "an axe, red, an  AXE, red.", "an axe, red."),
        (Edits(dedup=True), "a red axe with a red axe with a red axe", "a red axe with a red axe"),
        (Edits(dedup=True), "a red axe a red axe a red axe on on sand", "a red axe on sand"),
        (Edits(trigger="zx", prefix="photo of"), "", ""),
    ],
)
def test_edits(edits: Edits, before: str, after: str) -> None:
    assert edits(before) == after


def test_every_edit_made_again_changes_nothing() -> None:
    rng = random.Random(0)
    words = ["a", "red", "axe", "battle", "axe,", "on", "sand.", "zx", "Axe", "red,", "of", "photo"]
    pick = lambda n: " ".join(rng.choice(words) for _ in range(n))  # noqa: E731
    for _ in range(2000):
        old = rng.choice(["axe", "red", "battle axe", "on sand"])
        new = rng.choice(["hatchet", "battle axe", "", "Axe", "big red"])
        edits = Edits(
            replace=((old, new),) if rng.random() < 0.5 else (),
            prefix=rng.choice(["", "a photo of", "art,"]),
            suffix=rng.choice(["", ", studio", "by day", "."]),
            trigger=rng.choice(["", "zx", "blossom style"]),
        )
        once = edits(pick(rng.randint(0, 9)))
        assert edits(once) == once, edits


def test_repeats_stay_gone_and_long_words_are_quick() -> None:
    rng = random.Random(1)
    for _ in range(500):
        text = " ".join(rng.choice(["a", "b", "c,", "b."]) for _ in range(rng.randint(0, 14)))
        once = without_repeats(text)
        assert without_repeats(once) == once
        assert {w.strip(",.") for w in once.split()} == {w.strip(",.") for w in text.split()}
    assert without_repeats("a" * 1_000_000) == "a" * 1_000_000


def test_articles() -> None:
    assert with_articles("a orange axe and an red one, An box, A axe") == "an orange axe and a red one, A box, An axe"


def test_replacements_are_parsed_all_at_once() -> None:
    assert parse_replacements(["a=b", " x  y = ", "k=a=b"]) == (("a", "b"), ("x y", ""), ("k", "a=b"))
    with pytest.raises(RecipeError, match="'axe', '=x'"):
        parse_replacements(["axe", "=x", "a=b"])
