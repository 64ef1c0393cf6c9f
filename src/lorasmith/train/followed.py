"""The run folder as the processes see it that do not write it, and what the first tells them of it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorasmith.events import Event, Forecast
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train.ranks import Ranks
from lorasmith.train.resume import Past


class FollowedRun(Run):
    """The run that the first process holds and writes. Nothing here touches the disk, which need not be shared."""

    def __init__(self, path: Path, recipe: Recipe, *, taken_up: bool) -> None:
        self.path, self.recipe, self.taken_up = path, recipe, taken_up
        self._provenance: dict[str, Any] = {}

    def record(self, **facts: Any) -> None:
        self._provenance |= facts

    def append(self, event: Event) -> None:
        pass

    def checkpoints(self) -> list[Path]:
        return []

    def has_work(self) -> bool:
        return False

    def discard_if_empty(self) -> None:
        pass

    def close(self) -> None:
        pass


def share_run(ranks: Ranks, run: Run | None, recipe: Recipe | None) -> tuple[Run, Recipe]:
    """Return the first's run and recipe as they are, and in the other processes what stands for them."""
    told = ranks.tell([str(run.path), run.taken_up, recipe.model_dump_json()] if run and recipe else None)
    if run and recipe:
        return run, recipe
    recipe = Recipe.model_validate_json(told[2])
    return FollowedRun(Path(told[0]), recipe, taken_up=told[1]), recipe


def share_past(ranks: Ranks, begun: Generator[Event, None, Past]) -> Generator[Event, None, Past]:
    """Let the first find out where the run goes on, and tell the others; they are given no path and no records."""
    if ranks.alone:
        return (yield from begun)
    past = (yield from begun) if ranks.first else Past()
    told = ranks.tell(
        [past.step, past.checkpoint is not None, list(past.validated.items()), sorted(past.sampled), past.figures]
    )
    if ranks.first:
        return past
    step, has_checkpoint, validated, sampled, figures = told
    checkpoint = Path() if has_checkpoint else None
    return Past(step, checkpoint, dict(validated), set(sampled), figures)


def share_forecast(
    ranks: Ranks, foretold: Generator[Event, None, tuple[Recipe, Forecast]]
) -> Generator[Event, None, tuple[Recipe, Forecast]]:
    """Let the first foretell what its share of the training takes, and tell the others what it has decided."""
    if ranks.alone:
        return (yield from foretold)
    if ranks.first:
        recipe, forecast = yield from foretold
        ranks.tell([recipe.model_dump_json(), asdict(forecast)])
        return recipe, forecast
    told = ranks.tell(None)
    return Recipe.model_validate_json(told[0]), Forecast(**told[1])
