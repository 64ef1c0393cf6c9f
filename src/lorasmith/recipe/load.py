"""Read a recipe from TOML, presets and the command line; write one back.

All problems are reported in one error, each with its line and, for an unknown key, the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lorasmith.errors import RecipeError
from lorasmith.recipe.schema import Recipe, Section, is_safe_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class _Problem:
    where: str
    message: str


def preset_names() -> list[str]:
    """Return the names of the presets that ship with lorasmith."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def known_keys() -> list[str]:
    """Return every key of a recipe as ``section.key``, in the order of the schema."""
    return list(_keys(Recipe, ""))


def load_recipe(
    source: Path | None,
    *,
    folders: Sequence[Path] = (),
    base: str | None = None,
    preset: str = "default",
    overrides: Sequence[str] = (),
) -> Recipe:
    """Return the recipe in ``source``, laid over a preset and under what the command line adds.

    Args:
        source: a TOML file, or None for the preset alone. Paths in it start at its folder.
        folders: picture folders that replace those of the recipe; they start at the working directory.
        base: a base that replaces the recipe's.
        preset: one of ``preset_names()``.
        overrides: ``section.key=value`` texts; a value that is not TOML is taken as a string.

    Returns:
        A recipe whose paths are absolute.

    Raises:
        RecipeError: anything at all is wrong with the file, the preset or an override; it lists everything.
    """
    text = _read(source) if source else ""
    values = _preset(preset)
    _merge(values, _absolute(_parse(text, source), source.parent if source else Path()))
    given: dict[str, Any] = {"data": {"folders": [str(f) for f in folders]}} if folders else {}
    if base is not None:
        given["base"] = base
    problems = list(_apply(overrides, given))
    _merge(values, _absolute(given, Path()))
    if len(folders) == 1 and "name" not in values:
        name = Path(_resolve(str(folders[0]), Path())).name
        values |= {"name": name} if is_safe_name(name) else {}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        found = (_problem(detail, source, text, overrides) for detail in error.errors(include_url=False))
        raise _error([*problems, *found]) from None
    if problems:
        raise _error(problems)
    return recipe


def _read(source: Path) -> str:
    try:
        return source.read_bytes().decode("utf-8-sig")  # Windows' Notepad may begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(
            "The recipe is not UTF-8 text.", where=f"{source}:{line}", fix="Save it again as UTF-8 in your editor."
        ) from error
    except OSError as error:
        raise RecipeError(
            f"The recipe cannot be read: {error.strerror}.", where=str(source), fix="Check the path and its spelling."
        ) from error


def _parse(text: str, source: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        fix = "Mend that line; https://toml.io shows the format."
        if "escape" in str(error).lower() or "hex" in str(error).lower():
            fix = r"In a path write / instead of \, or put the path in 'single quotes'."
        where = f"{source}:{line.group(1)}" if line else str(source)
        raise RecipeError(f"The recipe is not valid TOML: {error}.", where=where, fix=fix) from error


def _preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise RecipeError(
            f"There is no preset {name!r}{_nearest(name, preset_names()) or '.'}",
            where="--preset",
            fix=f"Choose one of {', '.join(preset_names())}.",
        )
    path = _PRESETS / f"{name}.toml"
    return _parse(_read(path), path)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value


def _absolute(values: dict[str, Any], start: Path) -> dict[str, Any]:
    """Make the paths in ``values`` absolute; a base is a path only where something lies there."""
    data = values.get("data")
    for key in ("folders", "preserve"):
        folders = data.get(key) if isinstance(data, dict) else None
        if isinstance(data, dict) and isinstance(folders, list):
            data[key] = [_resolve(f, start) if isinstance(f, str) else f for f in folders]
    base = values.get("base")
    if isinstance(base, str) and base not in ("", "starter") and Path(_resolve(base, start)).exists():
        values["base"] = _resolve(base, start)
    return values


def _resolve(path: str, start: Path) -> str:
    # Not Path.resolve: a folder's name is its class, and a link may be named better than what it points to.
    return os.path.abspath(start / Path(path).expanduser())  # noqa: PTH100


def _apply(overrides: Sequence[str], values: dict[str, Any]) -> Iterator[_Problem]:
    """Put each ``section.key=value`` into ``values``; yield what is wrong with the others."""
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        where = f"--set {override}"
        if not equals or not key:
            yield _Problem(where, "must be written as key=value, such as train.steps=400")
        elif key not in known_keys():
            yield _Problem(where, f"unknown key {key!r}{_nearest(key, known_keys())}")
        else:
            *sections, last = key.split(".")
            inner = values
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[last] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _keys(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return ``. Did you mean ...?`` with the known names most like ``name``, or nothing."""
    last = name.rpartition(".")[2]
    exact = [k for k in known if k.rpartition(".")[2] == last]
    close = exact or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        ends = {k.rpartition(".")[2]: k for k in known}
        close = [ends[e] for e in difflib.get_close_matches(last, list(ends), n=1, cutoff=0.6)]
    return f". Did you mean {' or '.join(close)}?" if close else ""


def _problem(detail: ErrorDetails, source: Path | None, text: str, overrides: Sequence[str]) -> _Problem:
    names = [part for part in detail["loc"] if isinstance(part, str)]
    key = ".".join(names)
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must").removesuffix(".")
    if detail["type"] == "extra_forbidden":
        sections = sorted({k.partition(".")[0] for k in known_keys() if "." in k})
        known = sections if isinstance(detail["input"], dict) and len(names) == 1 else known_keys()
        message = f"unknown key{_nearest(key, known)}"
    elif detail["type"] == "tuple_type":
        message = f"must be a list in brackets, as [{_quoted(detail['input'])}]"
    elif detail["type"] == "string_too_short":
        message = "must not be empty"
    elif not isinstance(detail["input"], (dict, list)):
        message += f", not {detail['input']!r}"
    for override in reversed(overrides):  # of equal keys the last one counts
        if override.partition("=")[0].strip() == key:
            return _Problem(f"--set {override}", f"{key}: {message}")
    line = _line_of(text, names)
    return _Problem(f"{source}:{line}" if line else str(source or "command line"), f"{key}: {message}")


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _line_of(text: str, names: Sequence[str]) -> int | None:
    """Return the line of a key in TOML text, or of the nearest table or key around it.

    The TOML parser keeps no positions, so this looks for table headers and ``key =`` outside multi-line strings.
    """
    best: tuple[int, int] | None = None  # how many of the names match, and the line
    table: list[str] = []
    fence = ""
    for number, line in enumerate(text.splitlines(), start=1):
        inside = fence
        for quotes in re.findall(r'"""|\'\'\'', line):
            fence = "" if fence == quotes else fence or quotes
        if inside:
            continue
        header = re.match(r"\s*\[\[?([^\[\]]+)\]", line)
        entry = re.match(r"\s*([\w.\"' -]+?)\s*=", line)
        if header:
            table = path = _split_key(header.group(1))
        elif entry:
            path = [*table, *_split_key(entry.group(1))]
        else:
            continue
        if list(names[: len(path)]) == path and (best is None or len(path) > best[0]):
            best = (len(path), number)
    return best[1] if best else None


def _split_key(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]


def _error(problems: Sequence[_Problem]) -> RecipeError:
    fix = "docs/recipe.md lists every key with its bounds."
    if len(problems) == 1:
        what = f"The recipe cannot be used: {problems[0].message}"
        return RecipeError(what if what.endswith("?") else f"{what}.", where=problems[0].where, fix=fix)
    lines = "".join(f"\n  - {p.where}: {p.message}" for p in problems)
    return RecipeError(f"The recipe has {len(problems)} problems:{lines}", fix=fix)
