"""``lorasmith reproduce``: train a run again from its record, and compare."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("reproduce", short_help="Train a run again from its record, and compare.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="New run folder.  [default: RUN-again-001, -002, ...]")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def command(run: Path, out: Path | None, as_json: bool) -> None:
    """Train again what RUN trained, from the recipe and the provenance in its folder, into a new folder.

    At the end the hashes of the LoRA files are compared. On the same machine and versions a training on a CPU gives
    the same bytes; elsewhere the largest difference of any weight is told. The exit code is 0 if every file is the
    same and 1 if not.

    \b
    Examples:
      lorasmith reproduce runs/axe-001
      lorasmith reproduce runs/axe-001 --out /tmp/axe-again --json
    """
    from lorasmith.cli.screen import say, show
    from lorasmith.run import Run
    from lorasmith.train.reproduce import recorded, reproduce

    recipe, facts = recorded(run)
    again = Run.create(out or Run.new_path(run.parent, f"{run.name}-again"), recipe)
    try:
        with again:
            if not as_json:
                say(f"Training {run} again, in {again.path}.")
            finished = show(reproduce(run, facts, again), as_json=as_json)
    except BaseException:
        again.discard_if_empty()
        raise
    if any(event.figures.get("files_different") for event in finished):
        click.get_current_context().exit(1)
