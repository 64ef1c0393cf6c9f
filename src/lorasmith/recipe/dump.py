"""Write a recipe as TOML that says what each value means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorasmith.recipe.schema import Recipe, Section


def dump_recipe(recipe: Recipe) -> str:
    """Return ``recipe`` as commented TOML that loads back equal; fields without a value are commented out."""
    lines = ["# A lorasmith recipe. Every field is written out; docs/recipe.md has the bounds.", ""]
    lines += _fields(recipe)
    for name in type(recipe).model_fields:
        section = getattr(recipe, name)
        if isinstance(section, Section):
            lines += ["", f"# {type(section).__doc__}", f"[{name}]", *_fields(section)]
    return "\n".join(lines) + "\n"


def _fields(section: Section) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not isinstance(value, Section):
            left = f"# {name} =" if value is None else f"{name} = {toml_value(value)}"
            lines.append(f"{left}  # {field.description}")
    return lines


def toml_value(value: Any) -> str:
    """Return a recipe's value as TOML: a string, path, number, truth value or a list of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    text = value.as_posix() if isinstance(value, Path) else str(value)
    # JSON's escapes are TOML's, except that TOML also wants the delete character escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
