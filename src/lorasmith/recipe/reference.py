"""The reference page of the recipe, made from the schema: ``python -m lorasmith.recipe.reference docs/recipe.md``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from lorasmith.files import write_text
from lorasmith.recipe.dump import toml_value
from lorasmith.recipe.load import preset_names
from lorasmith.recipe.schema import Recipe, Section

_HEAD = """# The recipe

<!-- Made from src/lorasmith/recipe/schema.py by `python -m lorasmith.recipe.reference docs/recipe.md`. -->

A recipe is one TOML file that says everything about a training. Every key has a default, so the smallest recipe
names only the pictures:

```toml
version = 1

[data]
folders = ["data/axe", "data/spear"]
```

`lorasmith train recipe.toml` reads it. `--preset NAME` changes the defaults under it ({presets});
`--set train.steps=400` changes one key over it, as often as you like. An unknown key is an error that names the
nearest known one. The run folder keeps the whole resolved recipe, every default written out, as `recipe.toml`.
"""
_WORDS = {str: "text", Path: "path", int: "whole number", float: "number", bool: "true or false"}
_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def reference_markdown() -> str:
    """Return docs/recipe.md."""
    presets = ", ".join(f"`{name}`" for name in preset_names())
    parts = [_HEAD.format(presets=presets), "## Top of the file\n", _table(Recipe)]
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            parts += [f"## [{name}]\n", f"{field.annotation.__doc__}\n", _table(field.annotation)]
    return "\n".join(parts)


def _table(section: type[Section]) -> str:
    rows = ["| key | default | what it takes | what it means |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            continue
        default = "none" if field.default is None else f"`{toml_value(field.default)}`"
        rows.append(f"| `{name}` | {default} | {_takes(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def _takes(field: FieldInfo) -> str:
    words = _kind(field.annotation)
    bounds = [f"{sign} {getattr(m, name):,}" for m in field.metadata for name, sign in _BOUNDS if hasattr(m, name)]
    return ", ".join([words, *bounds])


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{toml_value(a)}`" for a in arguments)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_kind(a) for a in arguments if a is not NoneType)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}s"
    return _WORDS[annotation]


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference_markdown())
