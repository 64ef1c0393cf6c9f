"""Training a run again from what is recorded of it, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorasmith.errors import LorasmithError, RunError
from lorasmith.events import Event, Finished, Note, Warned
from lorasmith.files import sha256_file
from lorasmith.model.formats import read_lora
from lorasmith.recipe.load import load_recipe
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_log import last_records
from lorasmith.run_record import RECIPE, is_run, read_provenance
from lorasmith.train.checkpoint import LORA_FILE
from lorasmith.train.loop import train
from lorasmith.train.resume import differences


def recorded(source: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe and the provenance of a finished run.

    Raises:
        RunError: it is no run, its record cannot be read, or it has not been finished.
        RecipeError: its recipe cannot be read.
    """
    if not is_run(source):
        raise RunError("There is no run to reproduce.", where=str(source), fix="lorasmith runs lists those there are.")
    facts = read_provenance(source)
    if not isinstance(facts.get("result"), dict) or not facts["result"]:
        raise RunError(
            "The run has not been finished, so there is nothing to compare with.",
            where=str(source),
            fix=f"Finish it first: lorasmith train --resume {source}",
        )
    return load_recipe(source / RECIPE), facts


def reproduce(source: Path, facts: dict[str, Any], run: Run) -> Iterator[Event]:
    """Train ``run``, made with the recipe of the run at ``source``, and compare the files with what is recorded.

    Args:
        facts: the provenance of ``source``; see ``recorded``.

    Yields:
        the training's events; then what is the same and what is not, and Finished, whose figure ``files_different``
        counts the latter. ``largest_difference`` is that of any weight, where the old LoRA is still there.

    Raises:
        LorasmithError, KeyboardInterrupt: as ``train`` does.
    """
    yield from _not_as_it_was(facts, run.recipe)
    if isinstance(decided := facts.get("gradient_checkpointing"), bool):
        run.record(gradient_checkpointing=decided)
    files: tuple[Path, ...] = ()
    for event in train(run.recipe, run):
        if isinstance(event, Finished):
            files = event.files
        else:
            yield event
    for difference in (*differences(facts, run.provenance), *_threads(facts, run.provenance)):
        yield Warned(f"Not as it was then: {difference}.")
    yield from _outcome(source, facts["result"], files)


def _not_as_it_was(facts: dict[str, Any], recipe: Recipe) -> Iterator[Event]:
    """Yield what is known before it is trained to keep the training from being as it was."""
    sessions = facts.get("resumed", [])
    changes = [line for session in sessions for line in session.get("changes", [])]
    if recipe.train.schedule != "constant":  # else the steps before were taken as they are now
        changes += [session["more_steps"] for session in sessions if session.get("more_steps")]
    for change in changes:
        yield Warned(f"That run was gone on with after a change, so it cannot be trained again as it was: {change}.")
    counts = sorted({told.get("processes", 1) for told in (facts, *sessions)} - {1})
    if counts:
        said = " and ".join(map(str, counts))
        yield Warned(f"That run was trained by {said} processes, and this is one: the last digits may differ.")


def _outcome(source: Path, result: dict[str, str], files: tuple[Path, ...]) -> Iterator[Event]:
    different = 0
    for file in files:
        before, now = result.get(file.name), sha256_file(file)
        if before == now:
            yield Note(f"{file.name} is identical, byte for byte (SHA-256 {now}).")
        else:
            different += 1
            yield Warned(f"{file.name} is not the same: SHA-256 {before} then, {now} now.")
    figures = {"files_different": float(different)}
    if different and files:
        try:
            figures["largest_difference"] = _largest_difference(source / LORA_FILE, files[0])
        except LorasmithError as error:
            yield Warned(f"The weights cannot be compared one by one. {error}")
    finished = [r for r in last_records(source) if r.get("event") == "Finished"]
    if finished and (loss := finished[-1].get("figures", {}).get("validation_loss")) is not None:
        yield Note(f"The validation loss was {loss:.6f} then.")
    yield Finished("reproduce", files, figures)


def _threads(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    old, new = before.get("threads"), now.get("threads")
    if old and new and old != new:
        yield f"threads: {old} -> {new} (OMP_NUM_THREADS sets them)"


def _largest_difference(before: Path, now: Path) -> float:
    old, new = read_lora(before).tensors, read_lora(now).tensors
    if old.keys() != new.keys() or any(old[k].shape != new[k].shape for k in old):
        return float("inf")
    return max(float((old[k].double() - new[k].double()).abs().max()) for k in old)
