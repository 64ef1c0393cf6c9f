"""``lorasmith stop``: let a training save its work and end."""

from __future__ import annotations

from pathlib import Path

import click

from lorasmith.cli.ask import ask_for, run_argument, wait_option


@click.command("stop", short_help="Let a training save its work and end.")
@run_argument
@wait_option
def command(run: Path, no_wait: bool) -> None:
    """Ask the process that trains in RUN to finish its step, save and end, as Ctrl-C there would.

    \b
    Examples:
      lorasmith stop runs/axe-001
      lorasmith train --resume runs/axe-001      (goes on with it)
    """
    from lorasmith.train.resume_words import resume_command

    promise = "It finishes its step, saves and ends."
    ask_for(run, "stop", promise, f"Stopped. To go on: {resume_command(run)}", no_wait=no_wait)
