"""``lorasmith new``: a project folder with a recipe that suits the pictures."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("new", short_help="Start a project: a folder with a recipe that suits the pictures.")
@click.argument("name", metavar="NAME", type=click.Path(path_type=Path))
@click.argument("folders", nargs=-1, metavar="[FOLDER...]", type=click.Path(readable=False, path_type=Path))
@click.option("--base", default="starter", show_default=True, help="Model to adapt: starter, a folder, a file, an id.")
@click.option("--trigger", default="", metavar="WORD", help="The word that calls the LoRA, if the captions have one.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def command(name: Path, folders: tuple[Path, ...], base: str, trigger: str, as_json: bool) -> None:
    """Make the folder NAME with a recipe.toml for the pictures in the FOLDERs, one class each.

    Size, steps, rank and prompts are chosen by what is found in the pictures, and a comment on each says why. Without
    a FOLDER the project gets an empty one for the pictures. Nothing is overwritten.

    \b
    Examples:
      lorasmith new blossom pictures/axe pictures/spear
      lorasmith new portraits photos --base models/stable-diffusion-v1-5 --trigger zxperson
      lorasmith new first-try
    """
    from lorasmith.cli.screen import show
    from lorasmith.dataset.project import new_project

    show(new_project(name, folders, base=base, trigger=trigger), as_json=as_json)
