"""``lorasmith check``: what is wrong with the pictures and captions, before any model is loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorasmith.errors import RecipeError

if TYPE_CHECKING:
    from lorasmith.dataset.check import Found
    from lorasmith.events import Event, Finished
    from lorasmith.recipe.schema import Recipe

_KINDS_SHOWN = 12  # kinds of finding; with two lines each they fit one screen
_WIDTH = 110


@click.command("check", short_help="Find what is wrong with pictures and captions.")
@click.argument(
    "paths", nargs=-1, metavar="FOLDER | ZIP | RECIPE.toml ...", type=click.Path(readable=False, path_type=Path)
)
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="Check for this recipe's training (its resolution, ...)."
)
@click.option("--resolution", type=click.IntRange(32, 2048), help="Side of the training pictures, in pixels.")
@click.option("--trigger", default="", metavar="WORD", help="A word that every caption shall have.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: lorasmith-check]")
@click.option("--no-cache", is_flag=True, help="Look at every picture anew, and keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print events and findings as JSON lines.")
def command(
    paths: tuple[Path, ...],
    recipe: Path | None,
    resolution: int | None,
    trigger: str,
    out: Path | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Find everything that is wrong or doubtful in pictures and captions, at once.

    A PATH is a folder, a zip archive, or a recipe, whose folders are checked. Captions come from metadata.jsonl, .csv
    or .parquet, from .txt or .caption files beside the pictures, or from the folder's name. Nothing is changed. The
    results are a summary here, findings.json, and check.html with thumbnails. The exit code is 1 when something
    cannot be used, else 0.

    \b
    Examples:
      lorasmith check pictures/axe
      lorasmith check pictures/axe pictures/spear --trigger blossomstyle
      lorasmith check recipe.toml --out axe-check
      lorasmith check pictures.zip --resolution 1024 --json
    """
    from lorasmith.dataset import process_start

    process_start.begin(paths)
    sources, chosen = _sources(paths, recipe, resolution)
    process_start.begin(sources)  # a recipe's folders are known only now

    from lorasmith.cli.screen import say, show
    from lorasmith.dataset.check import Options, check, default_cache, default_out

    options = Options(chosen, trigger, None if no_cache else default_cache(), processes=True)
    found: list[Found] = []
    events = check(sources, out or default_out(sources), options)
    finished = show(events if as_json else _kept_back(events, found), as_json=as_json)
    errors = finished[-1].figures["errors"]
    if not as_json:
        errors = sum(each.severity == "error" for each in found)
        for line in summary(found, finished[-1]):
            say(line)
    if errors:
        click.get_current_context().exit(1)


def _sources(paths: Sequence[Path], recipe: Path | None, resolution: int | None) -> tuple[list[Path], Recipe]:
    """Return what to check and the recipe that it is for."""
    from lorasmith.recipe.load import load_recipe

    recipes = [path for path in paths if path.suffix.lower() == ".toml"] + ([recipe] if recipe else [])
    if len(recipes) > 1:
        what = "Only one recipe can be checked at a time."
        raise RecipeError(what, where=", ".join(map(str, recipes)), fix="Run the command once for each.")
    overrides = [f"data.resolution={resolution}"] if resolution else []
    chosen = load_recipe(recipes[0] if recipes else None, overrides=overrides)
    sources = [path for path in paths if path.suffix.lower() != ".toml"]
    if not sources:
        sources = [*chosen.data.folders, *chosen.data.preserve]
    if not sources:
        where = f"{recipes[0]}: data.folders" if recipes else None
        raise RecipeError("No pictures are named.", where=where, fix="Name a folder: lorasmith check pictures/axe")
    return sources, chosen


def _kept_back(events: Iterator[Event], found: list[Found]) -> Iterator[Event]:
    """Pass events on, except findings, which are collected, and the end, which the summary tells."""
    from lorasmith.dataset.check import Found

    for event in events:
        if isinstance(event, Found):
            found.append(event)
        else:
            yield event


def summary(found: Sequence[Found], finished: Finished) -> list[str]:
    """Return the findings grouped by kind, the worst first, in as many lines as fit one screen."""
    from lorasmith.dataset.finding import KINDS

    groups: dict[str, list[Found]] = defaultdict(list)
    for each in found:
        groups[each.code].append(each)
    order = {"error": 0, "warning": 1, "info": 2}
    codes = sorted(groups, key=lambda code: (order[groups[code][0].severity], list(KINDS).index(code)))
    figures = finished.figures
    lines = [
        "",
        f"{figures['pictures_usable']:.0f} of {figures['pictures_found']:.0f} pictures can be used; "
        f"{_count(figures['errors'], 'error')}, {_count(figures['warnings'], 'warning')}, "
        f"{_count(figures['infos'], 'remark')}.",
    ]
    shown_codes = codes[:_KINDS_SHOWN]
    for code in shown_codes:
        lines += _group(groups[code])
    if rest := codes[_KINDS_SHOWN:]:
        lines.append("also " + ", ".join(f"{code} ({len(groups[code])})" for code in rest))
    lines.append(f"All of it with pictures: {finished.files[-1]}" if found else "Nothing is wrong.")
    return lines


def _group(group: Sequence[Found]) -> list[str]:
    first = group[0]
    more = f"  (and {len(group) - 1} more)" if len(group) > 1 else ""
    line = f"{first.severity:7} {first.code} x{len(group)}: {first.message}"
    if first.severity == "info":
        return [_cut(line, _WIDTH - len(more)) + more]
    return [_cut(line, _WIDTH - len(more)) + more, f"{'':7}   to do: {_cut(first.fix, _WIDTH - 17)}"]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _count(number: float, one: str) -> str:
    return f"{number:.0f} {one}{'' if number == 1 else 's'}"
