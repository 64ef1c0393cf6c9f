"""What ``lorasmith stop``, ``save`` and ``sample`` share: asking the process that trains, and waiting until it has."""

from __future__ import annotations

import time
from pathlib import Path

import click

from lorasmith.errors import RunError

run_argument = click.argument("run", type=click.Path(path_type=Path))
wait_option = click.option("--no-wait", is_flag=True, help="Ask, and do not wait until it is done.")

_LOOK_EVERY = 0.2  # seconds
_SAY_AFTER = 2.0  # seconds


def ask_for(run: Path, what: str, promise: str, done: str, *, no_wait: bool) -> None:
    """Ask the process that trains in ``run`` for ``what`` and wait until it is done, or until that process has gone.

    Args:
        promise: what is said when it takes more than a moment.
        done: what is said at the end.

    Raises:
        RunError: ``run`` is no run, or nobody trains in it.
    """
    from lorasmith.cli.screen import say
    from lorasmith.run_lock import is_held, read_owner
    from lorasmith.run_status import find_runs
    from lorasmith.train.control import ask
    from lorasmith.train.resume_words import resume_command

    if not (run / "recipe.toml").is_file():
        names = ", ".join(str(s.path) for s in find_runs(run)[:5])
        fix = f"Name one, such as {names}." if names else "Name a run's folder; lorasmith runs lists those there are."
        raise RunError("That is no run folder.", where=str(run), fix=fix)
    if not is_held(run):
        raise RunError("No process trains in this run.", where=str(run), fix=f"To go on: {resume_command(run)}")
    path = ask(run, what)
    if no_wait:
        say(f"Asked. {promise}")
        return
    begun, said = time.monotonic(), False
    while path.exists() or (what == "stop" and is_held(run)):
        if not said and time.monotonic() - begun > _SAY_AFTER:
            said = True
            owner = read_owner(run)
            say(f"Asked{f' {owner}' if owner else ''}. {promise} (Ctrl-C ends this waiting, not the training.)")
        if not is_held(run):
            path.unlink(missing_ok=True)
            if what != "stop":
                raise RunError(f"The training ended before it could {what}.", where=str(run))
            break
        time.sleep(_LOOK_EVERY)
    say(done)
