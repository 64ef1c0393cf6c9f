"""Going on with a run: from which checkpoint, with what of its log, and whether anything has changed meanwhile."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from lorasmith import __version__
from lorasmith.dataset.read import Example
from lorasmith.errors import RunError
from lorasmith.events import Event, Note, Warned
from lorasmith.recipe.compare import recipe_changes
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_log import last_records
from lorasmith.run_manifest import step_of
from lorasmith.run_record import circumstances
from lorasmith.train.resume_words import resume_command
from lorasmith.train.rollback import newest_good, set_aside, settle, untold
from lorasmith.train.suggest import changed

_HASHES = {"base_sha256": "the base's weights", "dataset_sha256": "the pictures or captions"}


@dataclass
class Past:
    """What a run has behind it; a new one has nothing.

    validated: the validation loss by step; 0 is the base. sampled: the steps whose sample pictures are all there.
    seconds: spent on steps. rolled_back: how often, as the log says.
    """

    step: int = 0
    checkpoint: Path | None = None
    validated: dict[int, float] = field(default_factory=dict)
    sampled: set[int] = field(default_factory=set)
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    rolled_back: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)


def begin(run: Run, recipe: Recipe, facts: dict[str, Any], allow_changes: bool) -> Generator[Event, None, Past]:
    """Record what a new run is made of; for one that is taken up, find where it goes on.

    Args:
        facts: the hashes of base and data, the device, its number format, and the numbers of processes and threads,
            which may change.

    Raises:
        RunError: something has changed since, each thing named, unless ``allow_changes``; more steps are no change.
            Or the run has been finished, or has more steps behind it than the recipe wants.
        OutputError: the disk refuses.
    """
    if not run.taken_up:
        run.record(**facts)
        return Past()
    checkpoint, passed = newest_good(run)
    step = step_of(checkpoint) if checkpoint else 0
    _require_steps(run, recipe, step)
    changes = recipe_changes(run.recipe, recipe)
    changes += differences(run.provenance, {**circumstances(), **facts})
    if changes and not allow_changes:
        raise _refusal(run, changes)
    _require_work(run, recipe, step)
    yield from set_aside(run, passed)
    past = past_of(run, recipe, step, checkpoint)
    yield from untold(run, past.rolled_back)
    more = ""
    if recipe.train.steps > run.recipe.train.steps:
        more = f"train.steps: {run.recipe.train.steps} -> {recipe.train.steps}"
        yield Note(f"{more}; the learning rate goes on as the latter has it.")
    threads = [told.get("threads") for told in (run.provenance, facts)]
    if threads[0] and threads[1] and threads[0] != threads[1]:
        yield Note(f"Threads: {threads[0]} -> {threads[1]}; the last digits of what is computed may differ with them.")
    if recipe != run.recipe:
        run.change_recipe(recipe)
    _record(run, facts, step, changes, more)
    if changes:
        settle(run)
    for change in changes:
        yield Warned(f"Changed since this run began: {change}. It will not end as it would have.")
    where = f"from {checkpoint}" if checkpoint else "there is no checkpoint yet"
    yield Note(f"Going on after step {step} of {recipe.train.steps}: {where}.")
    return past


def settled(run: Run, recipe: Recipe) -> Recipe:
    """Return ``recipe`` with what was left open, and decided when the run began, as it was decided."""
    decided = run.provenance.get("gradient_checkpointing")
    if recipe.train.gradient_checkpointing is None and isinstance(decided, bool):
        return changed(recipe, {"train.gradient_checkpointing": decided})
    return recipe


def record_pictures(
    run: Run, parts: tuple[Sequence[Example], Sequence[Example]], failed: Sequence[str], allow_changes: bool
) -> None:
    """Record which pictures are trained on and held out, those left out while encoding not being among them.

    Args:
        failed: the names of the latter.

    Raises:
        RunError: they are not those that the run began with.
    """
    hashes = [sha256("".join(e.sha256 + e.label for e in part).encode()).hexdigest() for part in parts]
    now = dict(zip(("trained_on_sha256", "held_out_sha256"), hashes))
    before = {name: run.provenance.get(name) for name in now}
    if any(old and old != now[name] for name, old in before.items()) and not allow_changes:
        what = f"could not be encoded: {', '.join(failed)}" if failed else "can be encoded that could not be before"
        raise _refusal(run, [f"which pictures are used; some {what}"])
    if before != now:
        run.record(**now)


def lora_metadata(recipe: Recipe, facts: dict[str, str], provenance: dict[str, Any]) -> dict[str, str]:
    """Return what a LoRA file says of where it comes from; of folders only the names, since files are given away."""
    told = recipe.model_dump(mode="json")
    told["data"]["folders"] = [Path(folder).name for folder in told["data"]["folders"]]
    for key in ("base", "vae"):
        told[key] = told[key] and _without_folders(told[key])
    for key in ("keep_last", "keep_every", "ignore_memory_forecast"):
        del told["train"][key]
    return {
        "lorasmith": __version__,
        "base": told["base"],
        "base_sha256": facts["base_sha256"],
        "dataset_sha256": facts["dataset_sha256"],
        "seed": str(recipe.train.seed),
        "device": facts["device"].partition(":")[0],
        "packages": json.dumps(provenance.get("packages", {}), sort_keys=True),
        "recipe": json.dumps(told, sort_keys=True),
    }


def _without_folders(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield in which hashes, versions, kind of device and number format two provenances differ.

    What one of them lacks is no difference.
    """
    for name, what in _HASHES.items():
        old, new = before.get(name), now.get(name)
        if old and new and old != new:
            yield f"{what} (SHA-256 {old[:12]}... -> {new[:12]}...)"
    versions, here = ({**_versions(facts), **(facts.get("packages") or {})} for facts in (before, now))
    for name, old in versions.items():
        new = here.get(name)
        if old and new and old != new:
            yield f"{name}: {old} -> {new}"


def _versions(facts: dict[str, Any]) -> dict[str, Any]:
    kind = str(facts.get("device", "")).partition(":")[0]  # which of several GPUs does not matter
    python = ".".join(str(facts.get("python", "")).split(".")[:2])
    own = {"device": kind, "number format": facts.get("number_format")}
    return {**own, "lorasmith": facts.get("lorasmith"), "python": python}


def _refusal(run: Run, changes: Sequence[str]) -> RunError:
    lines = "".join(f"\n  - {change}" for change in changes)
    return RunError(
        f"The run would not go on as it began. Changed since:{lines}",
        where=str(run.path),
        fix="Put it back as it was, or go on all the same with --allow-changes.",
    )


def _require_steps(run: Run, recipe: Recipe, step: int) -> None:
    if step > recipe.train.steps:
        raise RunError(
            f"The run has {step} steps behind it, and the recipe wants {recipe.train.steps}.",
            where=str(run.path),
            fix=f"Use one of its checkpoints, each of which holds a LoRA, or go on with --set train.steps={2 * step}.",
        )


def _require_work(run: Run, recipe: Recipe, step: int) -> None:
    finished = [r for r in last_records(run.path) if r.get("event") == "Finished"]
    files = [run.path / Path(name).name for r in finished for name in r.get("files", ())]
    if step == recipe.train.steps and files and all(file.is_file() for file in files):
        raise RunError(
            f"The run is finished: all {step} steps are done.",
            where=str(run.path),
            fix=f"For more steps: {resume_command(run.path)} --set train.steps={2 * step}",
        )


def past_of(run: Run, recipe: Recipe, step: int, checkpoint: Path | None) -> Past:
    """Cut the run's log after ``step``, and return what the run has behind it then.

    Raises:
        OutputError: the disk refuses.
    """
    past = Past(step, checkpoint)
    pictures = recipe.train.batch * recipe.train.accumulation
    done = 0
    for record in run.rewind(step):
        kind = record.get("event")
        if kind == "StepDone":
            past.seconds += (record["step"] - done) * pictures / (record["samples_per_second"] or float("inf"))
            done = record["step"]
            past.figures |= {"loss": record["loss"], "steps": done}
        elif kind == "Validated" and record["loss"] is not None:
            past.validated[record["step"]] = record["loss"]
        elif kind == "Sampled":
            places = [run.samples_folder(record["step"]) / Path(name).name for name in record["paths"]]
            record["paths"] = [str(place) for place in places if place.is_file()]  # the run may have been moved
            if len(record["paths"]) == len(places):
                past.sampled.add(record["step"])
        else:
            past.rolled_back += kind == "RolledBack"
            continue
        past.records.append(record)
    return past


def _record(run: Run, facts: dict[str, Any], step: int, changes: Sequence[str], more: str) -> None:
    now = circumstances()
    about = {
        "time": now.pop("started"),
        "step": step,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": facts.get("processes", 1),
        "changes": list(changes),
        "more_steps": more,
        **now,
    }
    run.record(**facts, resumed=[*run.provenance.get("resumed", []), about])
