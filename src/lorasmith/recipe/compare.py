"""What differs between two recipes."""

from __future__ import annotations

from functools import reduce
from typing import Any

from lorasmith.recipe.load import known_keys
from lorasmith.recipe.schema import Recipe

# Keys that change nothing in what is learned, as long as all goes well.
_FREE = (
    "train.keep_last",
    "train.keep_every",
    "train.ignore_memory_forecast",
    "train.rollback_after",
    "train.rollbacks",
)


def recipe_changes(before: Recipe, after: Recipe) -> list[str]:
    """Return the keys in which two recipes differ, each with both values.

    More steps are no change, nor is what has no influence on what is learned.
    """
    changes = []
    for key in known_keys():
        old, new = _value(before, key), _value(after, key)
        if old != new and key not in _FREE and not (key == "train.steps" and new > old):
            changes.append(f"{key}: {_text(old)} -> {_text(new)}")
    return changes


def _value(recipe: Recipe, key: str) -> Any:
    return reduce(getattr, key.split("."), recipe)


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return "none" if value is None else str(value)
