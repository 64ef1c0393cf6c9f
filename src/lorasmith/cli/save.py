"""``lorasmith save``: let a training write a checkpoint now."""

from __future__ import annotations

from pathlib import Path

import click

from lorasmith.cli.ask import ask_for, run_argument, wait_option


@click.command("save", short_help="Let a training write a checkpoint now.")
@run_argument
@wait_option
def command(run: Path, no_wait: bool) -> None:
    """Ask the process that trains in RUN for a checkpoint at the end of its step; it trains on after that.

    \b
    Examples:
      lorasmith save runs/axe-001
    """
    from lorasmith.run import complete_checkpoints

    promise = "It saves at the end of its step, once it trains."
    ask_for(run, "save", promise, "Asked for and done.", no_wait=no_wait)
    if not no_wait and (saved := complete_checkpoints(run)):
        from lorasmith.cli.screen import say

        say(f"The newest checkpoint is {saved[-1]}")
