"""``lorasmith runs``: the runs and how they stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lorasmith.run_status import RunStatus


@click.command("runs", short_help="List runs and how they stand.")
@click.argument("folder", default=Path("runs"), type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each run.")
def command(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (runs, if none is named) and how each stands.

    running: a process is at work on it. finished: its LoRA is written. stopped: it waits to be gone on with. died: the
    same, and its process did not end it. unreadable: its recipe cannot be read. That is worked out from the run's lock,
    the process and its signs of life, so it is true after a power failure, too.

    \b
    Examples:
      lorasmith runs
      lorasmith runs other/folder
      lorasmith runs runs/axe-001 --json
    """
    from lorasmith.cli.screen import print_json, say
    from lorasmith.run_status import find_runs

    found = find_runs(folder)
    if as_json:
        for status in found:
            print_json(status.to_json())
        return
    if not found:
        say(f"There are no runs in {folder}.")
    for status in found:
        say(_line(status))


def _line(status: RunStatus) -> str:
    of = f" of {status.steps}" if status.steps else ""
    parts = [f"{status.path}: {status.state}", f"step {status.step}{of}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if status.state == "running":
        if status.owner:
            parts.append(str(status.owner))
        if status.quiet is not None and status.quiet > 60:
            parts.append(f"nothing logged for {status.quiet / 60:.0f} min")
    elif status.state != "finished":
        parts.append(f"checkpoint at {status.saved}" if status.saved else "no checkpoint")
        if status.state == "died" and status.owner:
            parts.append(f"was {status.owner}")
        if status.state != "unreadable":
            from lorasmith.train.resume_words import resume_command

            parts.append(f"go on: {resume_command(status.path)}")
    return ", ".join(parts)
