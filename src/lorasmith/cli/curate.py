"""``lorasmith curate``: a clean copy of folders of pictures."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("curate", short_help="Make a clean copy of folders of pictures.")
@click.argument("folders", nargs=-1, required=True, metavar="PATH...", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="New folder for the clean set; with --show, new PNG file. Needed but with --dry-run.",
)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="What to do, as a TOML file.")
@click.option("--dry-run", is_flag=True, help="Do everything but write, and say what would be done to each picture.")
@click.option("--show", metavar="FILE", help="Do only this picture, and show each step at full size in one PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def command(
    folders: tuple[Path, ...], out: Path | None, plan_file: Path | None, dry_run: bool, show: str | None, as_json: bool
) -> None:
    """Write a clean copy of the pictures and captions in PATH...; the source is only read.

    Without a plan: everything upright, in RGB and sRGB; duplicates dropped; stray lines and overlaid text removed
    where that is sure. A plan adds cropping, shapes, backgrounds, exposure, mirrored copies and masks, and makes
    exceptions for single pictures. OUT/ledger.jsonl tells what became of each picture; OUT-sheets shows it.

    \b
    Examples:
      lorasmith curate data/axe --out clean/axe
      lorasmith curate data/axe --out clean/axe --plan plan.toml --dry-run
      lorasmith curate data/axe --plan plan.toml --show 12.png --out steps-of-12.png
    """
    if out is None and not dry_run:
        raise click.UsageError("Say where the clean set goes with --out, or look first with --dry-run.")
    if show and dry_run:
        raise click.UsageError("--show writes one picture and --dry-run writes none: leave one of them out.")
    if show and out is not None and out.suffix.lower() != ".png":
        raise click.UsageError("With --show, --out is a PNG file.")

    from lorasmith.cli.screen import show as draw
    from lorasmith.dataset.curate import curate, show_picture
    from lorasmith.dataset.plan import load_plan

    plan = load_plan(plan_file)
    if show and out is not None:
        draw(show_picture(folders, show, out, plan), as_json=as_json)
    else:
        draw(curate(folders, out or Path("dry-run"), plan, dry_run=dry_run), as_json=as_json)
