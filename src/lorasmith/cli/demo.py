"""``lorasmith demo``: the whole work on the built-in model."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo", short_help="See the whole work in minutes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="New folder for everything the demo makes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def command(out: Path, as_json: bool) -> None:
    """Draw a data set, train a LoRA on it, and show the pictures before and after.

    Four weapons (axe, spear, trident, whip) with pink blossom patterns, on the model that comes with lorasmith: no
    graphics card, no network, a few minutes.

    \b
    Examples:
      lorasmith demo
      lorasmith demo --out blossoms
    """
    from lorasmith.cli.screen import show
    from lorasmith.starter.demo import demo

    show(demo(out), as_json=as_json)
