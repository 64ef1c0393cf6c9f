"""Rolling a training back: the run folder, the log and the trainer together."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from lorasmith.events import Event
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_manifest import step_of
from lorasmith.train.board import Board
from lorasmith.train.followed import share_past
from lorasmith.train.resume import Past, past_of
from lorasmith.train.rollback import diverged, newest_good, record, rollbacks, set_aside, untold
from lorasmith.train.trainer import Trainer


def recover(run: Run, recipe: Recipe, trainer: Trainer, board: Board) -> Generator[Event, None, Past]:
    """Take a training that diverges back to the last good checkpoint, or its beginning, with a lower learning rate.

    The log is cut back as when a run is gone on with, so that it has every step once; what is cut off is kept.

    Returns:
        What the run has behind it then.

    Raises:
        RunError: it was rolled back as often as the recipe allows.
        OutputError: the disk refuses.
    """
    ranks = trainer.ranks
    now: dict[str, Any] = {
        "at": trainer.step,
        "skipped": [
            {"step": step, "why": why, "pictures": list(trainer.pictures(step))} for step, why in trainer.watch.row
        ],
        "learning_rate": trainer.learning_rate,
    }
    if trainer.slowings >= recipe.train.rollbacks:
        number_format = str(trainer.sd.dtype).removeprefix("torch.")
        raise diverged(run, recipe, number_format, now, _seen_good(run, trainer, now))
    if ranks.first:
        record(run, good=trainer.watch.good, **now)
    past = yield from share_past(ranks, _back(run, recipe, trainer.rolled_back))
    if ranks.first:
        board.draw_again(past.records)
    trainer.rolled_back += 1
    trainer.slowings += 1
    if past.checkpoint is None:
        trainer.begin_again()
    else:
        with ranks.copy_of(past.checkpoint) as folder:
            trainer.restore(folder)
    return past


def _back(run: Run, recipe: Recipe, told: int) -> Generator[Event, None, Past]:
    """Go back in the run folder; ``told`` roll-backs have been told by this process."""
    checkpoint, passed = newest_good(run)
    events = set_aside(run, passed)  # told once the log is cut back, or they would be cut off
    past = past_of(run, recipe, step_of(checkpoint) if checkpoint else 0, checkpoint)
    missing = list(untold(run, past.rolled_back))
    known = told - past.rolled_back
    for event in missing[:known]:  # cut off the log with the steps after them; who listens has heard of them
        run.append(event)
    yield from events
    yield from missing[known:]
    return past


def _seen_good(run: Run, trainer: Trainer, now: dict[str, Any]) -> set[str]:
    """Return the pictures of the steps that went well between the last roll-back, or the beginning, and now."""
    entries = rollbacks(run)
    since = entries[-1]["to"] if entries else 0
    skipped = {entry["step"] for entry in now["skipped"]}
    return {name for step in range(since + 1, now["at"] + 1) if step not in skipped for name in trainer.pictures(step)}
