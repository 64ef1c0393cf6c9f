"""Whether ``lorasmith train`` begins a run or goes on with one."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lorasmith.errors import RecipeError, RunError
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_record import is_run
from lorasmith.run_status import RunStatus, run_status
from lorasmith.train.resume_words import resume_command

_RUNS = Path("runs")
_STARTS_AT_ONCE = 16


def begin_or_go_on(recipe: Recipe, out: Path | None, *, yes: bool, may_ask: bool) -> tuple[Run, str]:
    """Return a new run, or the unfinished one that the same command began if that is wanted, and a hint or "".

    Args:
        out: the run folder; None for the next free number in runs.
        yes: go on without a question. may_ask: somebody is there to answer one.

    Raises:
        RunError: the folder holds something else, is in use, or holds an unfinished run that shall not be gone on with.
        OutputError: it cannot be written.
    """
    found = _unfinished(recipe, out)
    if found is None:
        return (Run.create(out, recipe) if out else _numbered(recipe)), ""
    if found.state == "running" and out:
        return Run.open(found.path), ""  # which names who is at work
    if found.state != "running" and (yes or (may_ask and sys.stdin.isatty() and _agreed(found))):
        return Run.open(found.path), ""
    if out:
        raise RunError(
            f"That folder holds an unfinished run, at {_place(found)}.",
            where=str(out),
            fix=f"Go on with it: {resume_command(out)} (or give --yes). To begin anew, choose another folder.",
        )
    go_on = f"{found.path} is unfinished, at {_place(found)}; to go on with that: {resume_command(found.path)}"
    return _numbered(recipe), go_on if found.state != "running" else ""


def _unfinished(recipe: Recipe, out: Path | None) -> RunStatus | None:
    path = out or _newest(recipe.name)
    if path is None or not is_run(path):
        return None
    status = run_status(path)
    if status.state in ("finished", "unreadable") or (out is None and not _same(path, recipe)):
        return None
    return status


def _newest(name: str) -> Path | None:
    numbers = [p for p in _RUNS.glob(f"{name}-*") if p.name.removeprefix(f"{name}-").isdecimal()]
    return max(numbers, key=lambda p: int(p.name.removeprefix(f"{name}-")), default=None)


def _same(path: Path, recipe: Recipe) -> bool:
    from lorasmith.recipe.compare import recipe_changes
    from lorasmith.recipe.load import load_recipe

    try:
        return not recipe_changes(load_recipe(path / "recipe.toml"), recipe)
    except RecipeError:
        return False


def _agreed(found: RunStatus) -> bool:
    return click.confirm(f"{found.path} is unfinished, at {_place(found)}. Go on with it?", default=True, err=True)


def _place(found: RunStatus) -> str:
    return f"step {found.saved or 0} of {found.steps}"


def _numbered(recipe: Recipe) -> Run:
    """Make the next run folder in runs; trainings that start at the same time get one each."""
    for _ in range(_STARTS_AT_ONCE):
        try:
            return Run.create(Run.new_path(_RUNS, recipe.name), recipe)
        except RunError:  # another training took that number meanwhile
            continue
    return Run.create(Run.new_path(_RUNS, recipe.name), recipe)
