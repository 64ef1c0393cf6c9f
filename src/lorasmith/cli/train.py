"""``lorasmith train``: from picture folders to a LoRA."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorasmith.errors import RecipeError
from lorasmith.recipe.schema import Recipe

if TYPE_CHECKING:
    from lorasmith.run import Run
    from lorasmith.train.ranks import Ranks

_SOURCE = "RECIPE.toml | FOLDER..."


@click.command("train", short_help="Train a LoRA on folders of pictures.")
@click.argument("source", nargs=-1, metavar=_SOURCE, type=click.Path(readable=False, path_type=Path))
@click.option("--base", help="Model to adapt: starter, a folder, one .safetensors or .ckpt file, or a hub id.")
@click.option("--out", type=click.Path(path_type=Path), help="New run folder.  [default: runs/NAME-001, -002, ...]")
@click.option("--preset", default="default", show_default=True, help="default, reference, low-memory or quality.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe; repeatable."
)
@click.option("--strict", is_flag=True, help="Stop if any picture has to be left out.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an unfinished run.")
@click.option("--allow-changes", is_flag=True, help="Go on even if the recipe, data, base or versions have changed.")
@click.option("--yes", is_flag=True, help="Go on with an unfinished run of the same recipe without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def command(
    source: tuple[Path, ...],
    base: str | None,
    out: Path | None,
    preset: str,
    overrides: tuple[str, ...],
    strict: bool,
    resume: Path | None,
    allow_changes: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Train a LoRA on one or several folders of pictures, or as a recipe says.

    Each folder is one class. Captions come from its metadata.jsonl (file_name, text) or from a .txt file beside each
    picture. What is read, what is left out and why is shown before the model is loaded. A run never overwrites
    another. Ctrl-C ends the step, saves it and stops; --resume goes on from there, as if it had never stopped.

    \b
    Examples:
      lorasmith train pictures/axe
      lorasmith train pictures/axe pictures/spear --set train.steps=1500 --set data.flip=true
      lorasmith train recipe.toml --base models/stable-diffusion-v1-5 --out runs/pink-blossom
      lorasmith train pictures/axe --preset low-memory --set lora.rank=8
      lorasmith train --resume runs/axe-001
      lorasmith train --resume runs/axe-001 --set train.steps=3000
    """
    overrides = (*overrides, *(["data.strict=true"] if strict else []))
    if resume is not None and out is not None:
        raise click.UsageError("--resume goes on in the run's own folder, so --out cannot be given with it.")
    if resume is None and not source:
        raise click.UsageError(f"Missing argument '{_SOURCE}'.")

    from lorasmith.train.together import together

    with together() as ranks:
        begun, hint = None, ""
        if ranks.first:
            begun, hint = _begin(source, base, preset, overrides, resume, out, yes, not as_json and ranks.alone)
        try:
            _train(begun, ranks, hint, allow_changes, as_json)
        except BaseException:
            if begun:
                begun[0].discard_if_empty()
            raise


def _begin(
    source: tuple[Path, ...],
    base: str | None,
    preset: str,
    overrides: tuple[str, ...],
    resume: Path | None,
    out: Path | None,
    yes: bool,
    may_ask: bool,
) -> tuple[tuple[Run, Recipe], str]:
    """Return the run, new or taken up, with the recipe to train, and a hint or ""."""
    from lorasmith.cli.take_up import begin_or_go_on
    from lorasmith.run import Run
    from lorasmith.run_record import is_run

    if resume is None:
        recipe = _recipe(source, base, preset, overrides)
        run, hint = begin_or_go_on(recipe, out, yes=yes, may_ask=may_ask)
        return (run, recipe), hint
    own = (resume / "recipe.toml",) if is_run(resume) else ()
    changed = _recipe(source or own, base, preset, overrides) if source or own else None
    run = Run.open(resume)
    return (run, changed or run.recipe), ""


def _train(begun: tuple[Run, Recipe] | None, ranks: Ranks, hint: str, allow_changes: bool, as_json: bool) -> None:
    from lorasmith.cli.screen import say, show

    with begun[0] if begun else nullcontext():
        if begun and not as_json:
            say(_summary(begun[1], begun[0].path))
            if hint:
                say(hint)
            if not ranks.alone:
                say(f"{ranks.world} processes share the work.")
        from lorasmith.train.followed import share_run
        from lorasmith.train.loop import train

        run, recipe = share_run(ranks, *(begun or (None, None)))
        events = train(recipe, run, allow_changes=allow_changes, ranks=ranks)
        if ranks.first:
            show(events, as_json=as_json)
        else:
            deque(events, maxlen=0)  # it has none to show


def _recipe(source: tuple[Path, ...], base: str | None, preset: str, overrides: tuple[str, ...]) -> Recipe:
    from lorasmith.recipe.load import load_recipe

    recipes = [path for path in source if path.suffix.lower() == ".toml"]
    folders = [path for path in source if path not in recipes]
    if len(recipes) > 1:
        raise RecipeError(
            "Only one recipe can be trained at a time.",
            where=", ".join(map(str, recipes)),
            fix="Run the command once for each.",
        )
    recipe = load_recipe(
        recipes[0] if recipes else None, folders=folders, base=base, preset=preset, overrides=overrides
    )
    if not recipe.data.folders:
        raise RecipeError(
            "The recipe names no pictures.",
            where=f"{source[0]}: data.folders",
            fix='Add folders = ["my/pictures"] under [data], or name folders on the command line.',
        )
    return recipe


def _summary(recipe: Recipe, path: Path) -> str:
    lora, train = recipe.lora, recipe.train
    pictures = train.batch * train.accumulation
    return (
        f"{recipe.name}: rank {lora.rank} on {lora.targets}{' and the text encoder' if lora.text_encoder else ''}, "
        f"{train.steps} steps of {pictures} pictures, base {recipe.base}, run folder {path}"
    )
