"""``lorasmith sample``: let a training draw its sample pictures now."""

from __future__ import annotations

from pathlib import Path

import click

from lorasmith.cli.ask import ask_for, run_argument, wait_option


@click.command("sample", short_help="Let a training draw its sample pictures now.")
@run_argument
@wait_option
def command(run: Path, no_wait: bool) -> None:
    """Ask the process that trains in RUN for sample pictures at the end of its step; it trains on after that.

    They are drawn from the recipe's prompts and seeds, as those of a checkpoint are, and the step is saved, too.

    \b
    Examples:
      lorasmith sample runs/axe-001
    """
    promise = "It draws them at the end of its step, once it trains."
    ask_for(run, "sample", promise, "Asked for and done.", no_wait=no_wait)
    if not no_wait:
        from lorasmith.cli.screen import line, say
        from lorasmith.events import Sampled, from_json
        from lorasmith.run_log import last_records

        drawn = [from_json(record) for record in last_records(run) if record.get("event") == Sampled.__name__]
        if drawn:
            say(line(drawn[-1]))
