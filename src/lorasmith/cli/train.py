"""``lorasmith train``: from picture folders to a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorasmith.errors import RecipeError, RunError
from lorasmith.recipe.schema import Recipe

if TYPE_CHECKING:
    from lorasmith.run import Run

_STARTS_AT_ONCE = 16


@click.command("train", short_help="Train a LoRA on folders of pictures.")
@click.argument("source", nargs=-1, required=True, metavar="RECIPE.toml | FOLDER...", type=click.Path(path_type=Path))
@click.option("--base", help="Model to adapt: starter, a folder in the diffusers layout, or a Hugging Face id.")
@click.option("--out", type=click.Path(path_type=Path), help="New run folder.  [default: runs/NAME-001, -002, ...]")
@click.option("--preset", default="default", show_default=True, help="default, reference, low-memory or quality.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe; repeatable."
)
@click.option("--strict", is_flag=True, help="Stop if any picture has to be left out.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def command(
    source: tuple[Path, ...],
    base: str | None,
    out: Path | None,
    preset: str,
    overrides: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> None:
    """Train a LoRA on one or several folders of pictures, or as a recipe says.

    Each folder is one class. Captions come from its metadata.jsonl (file_name, text) or from a .txt file beside each
    picture. What is read, what is left out and why is shown before the model is loaded. A run never overwrites
    another; Ctrl-C keeps what has been learned so far.

    \b
    Examples:
      lorasmith train pictures/axe
      lorasmith train pictures/axe pictures/spear --set train.steps=1500 --set data.flip=true
      lorasmith train recipe.toml --base models/stable-diffusion-v1-5 --out runs/pink-blossom
      lorasmith train pictures/axe --preset low-memory --set lora.rank=8
    """
    recipe = _recipe(source, base, preset, (*overrides, *(["data.strict=true"] if strict else [])))

    from lorasmith.cli.screen import say, show
    from lorasmith.run import Run

    run = Run.create(out, recipe) if out else _numbered_run(recipe)
    try:
        with run:
            if not as_json:
                say(_summary(recipe, run.path))
            from lorasmith.train.loop import train

            show(train(recipe, run), as_json=as_json)
    except BaseException:
        run.discard_if_empty()
        raise


def _numbered_run(recipe: Recipe) -> Run:
    """Make the next run folder in runs; trainings that start at the same time get one each."""
    from lorasmith.run import Run

    for _ in range(_STARTS_AT_ONCE):
        try:
            return Run.create(Run.new_path(Path("runs"), recipe.name), recipe)
        except RunError:  # another training took that number meanwhile
            continue
    return Run.create(Run.new_path(Path("runs"), recipe.name), recipe)


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
