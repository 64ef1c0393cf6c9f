"""How a run stands, worked out from its lock, its owner's signs of life and its files; nothing says so of itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorasmith.errors import RecipeError
from lorasmith.run_lock import Owner, is_held, read_owner
from lorasmith.run_log import LOG_FILE, last_records
from lorasmith.run_manifest import complete_checkpoints, step_of
from lorasmith.run_record import RECIPE, is_run

State = Literal["running", "finished", "stopped", "died", "unreadable"]


@dataclass(frozen=True)
class RunStatus:
    """A run at a glance.

    state: "running"; "finished"; "stopped", between two sessions; "died", as stopped but its process did not end it;
        "unreadable", its recipe cannot be read.
    step: the last one in its log. saved: the last one with a checkpoint, or None. steps: wanted.
    loss: of the last logged steps. quiet: seconds since the last event. owner: the process at work, or that died.
    """

    path: Path
    state: State
    step: int
    saved: int | None
    steps: int | None
    loss: float | None
    quiet: float | None
    owner: Owner | None

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        owner = {"host": self.owner.host, "pid": self.owner.pid, "since": self.owner.since} if self.owner else None
        fields = ("state", "step", "saved", "steps", "loss", "quiet")
        return {"path": self.path.as_posix(), **{name: getattr(self, name) for name in fields}, "owner": owner}


def run_status(path: Path) -> RunStatus:
    """Return how the run at ``path`` stands."""
    held, owner = is_held(path), read_owner(path)
    records = last_records(path)
    logged = [r for r in records if r.get("event") == "StepDone" and isinstance(r.get("step"), int)]
    checkpoints = complete_checkpoints(path)
    saved = step_of(checkpoints[-1]) if checkpoints else None
    steps = _steps(path)
    state: State = "died" if owner else "stopped"
    if held:
        state = "running"
    elif steps is None:
        state = "unreadable"
    elif _is_finished(path, records):
        state = "finished"
    try:
        quiet: float | None = max(0.0, time.time() - (path / LOG_FILE).stat().st_mtime)
    except OSError:
        quiet = None
    step, loss = (logged[-1]["step"], logged[-1].get("loss")) if logged else (saved or 0, None)
    return RunStatus(path, state, step, saved, steps, loss, quiet, owner)


def find_runs(parent: Path) -> list[RunStatus]:
    """Return how the runs in ``parent`` stand, by name; ``parent`` may itself be one."""
    if is_run(parent):
        return [run_status(parent)]
    if not parent.is_dir():
        return []
    return [run_status(path) for path in sorted(parent.iterdir()) if is_run(path)]


def _is_finished(path: Path, records: list[dict[str, Any]]) -> bool:
    finished = [r for r in records if r.get("event") == "Finished" and r.get("stage") == "train"]
    return bool(finished) and all((path / Path(name).name).is_file() for name in finished[-1].get("files", ()))


def _steps(path: Path) -> int | None:
    from lorasmith.recipe.load import load_recipe  # here, since it is heavy

    try:
        return load_recipe(path / RECIPE).train.steps
    except RecipeError:
        return None
