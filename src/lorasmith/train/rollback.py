"""Going back to the last good checkpoint with a lower learning rate when a training diverges, and giving up in words.

Each time is recorded in the run's provenance.json under ``rollbacks``, before anything else is done. A checkpoint
knows how many were behind it. So after a kill at any moment it is clear which checkpoints no longer count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.errors import RunError
from lorasmith.events import Event, Warned
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_manifest import PassedOver, fault, newest_valid, step_of
from lorasmith.train.checkpoint import read_state
from lorasmith.train.guards import named
from lorasmith.train.resume_words import resume_command

RATE = 0.5  # that the learning rate is multiplied by each time
_RECORD = "rollbacks"


@dataclass(frozen=True)
class RolledBack(Event):
    """The training went back from step ``at`` to step ``to``.

    skipped: the steps that led to it, each with its number ("step"), "why" and "pictures". rate: what the recipe's
    learning rate is multiplied by from here on.
    """

    at: int
    to: int
    rate: float
    skipped: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        steps = [entry["step"] for entry in self.skipped]
        reason = f"steps {_ranges(steps)} were not finite" if steps else "a weight is not finite"
        return (
            f"Rolled back from step {self.at} to step {self.to}, since {reason}. The learning rate is {self.rate:g} "
            "times the recipe's from here on."
        )


def rollbacks(run: Run) -> list[dict[str, Any]]:
    """Return what is recorded of each time the run was rolled back, oldest first."""
    return list(run.provenance.get(_RECORD, []))


def counting(run: Run) -> tuple[int, int]:
    """Return how often the run was rolled back, and how often since its recipe or its data were last changed."""
    entries = rollbacks(run)
    return len(entries), sum(not entry.get("settled") for entry in entries)


def settle(run: Run) -> None:
    """Say that what led to the roll-backs has been changed, so that the rate and the count begin anew.

    Raises:
        OutputError: the disk refuses.
    """
    if counting(run)[1]:
        run.record(rollbacks=[{**entry, "settled": True} for entry in rollbacks(run)])


def why_not(run: Run, checkpoint: Path) -> str | None:
    """Return why a training does not go on from a checkpoint, or None if it may."""
    if reason := fault(checkpoint):
        return reason
    entries = rollbacks(run)
    if not entries:
        return None
    behind = read_state(checkpoint).get("rollbacks", 0)
    left = any(entry["to"] < step_of(checkpoint) for entry in entries[behind:])
    return "the training diverged after it" if left else None


def record(run: Run, at: int, good: int, skipped: Sequence[dict[str, Any]], learning_rate: float) -> None:
    """Record that the run goes back, to the newest checkpoint from which a step was good, or to the beginning.

    Args:
        at: the step it comes from. good: the latest step that was not skipped. skipped: see ``RolledBack``.
        learning_rate: of step ``at``.

    Raises:
        OutputError: the disk refuses.
    """
    # Whether what a checkpoint holds is good shows in the step after it: a finite loss. Where none is known to be,
    # one that may be good is tried once before all is begun anew.
    checkpoint, _ = newest_valid(run.path, lambda path: "" if step_of(path) >= good else why_not(run, path))
    if checkpoint is None:
        tried = {entry["to"] for entry in rollbacks(run) if not entry.get("settled")}
        checkpoint, _ = newest_valid(run.path, lambda path: "" if step_of(path) in tried else why_not(run, path))
    to = step_of(checkpoint) if checkpoint else 0
    entry = {"at": at, "to": to, "skipped": list(skipped), "learning_rate": learning_rate}
    run.record(rollbacks=[*rollbacks(run), entry])


def newest_good(run: Run) -> tuple[Path | None, list[PassedOver]]:
    """Return the checkpoint to go on from, and the newer ones that are not used."""
    return newest_valid(run.path, lambda path: why_not(run, path))


def set_aside(run: Run, passed: Sequence[PassedOver]) -> list[Event]:
    """Rename checkpoints that are not used, and return what there is to say of it.

    Raises:
        OutputError: the disk refuses.
    """
    return [
        Warned(f"Passed over {p.path.name}: {p.reason}. It is kept as {run.set_aside(p.path).name}.") for p in passed
    ]


def untold(run: Run, told: int) -> Iterator[Event]:
    """Yield the events of the roll-backs after the first ``told``: those that the log, cut back, does not have."""
    entries = rollbacks(run)
    since = 0
    for number, entry in enumerate(entries, start=1):
        since = 0 if entry.get("settled") else since + 1
        if number > told:
            yield RolledBack(entry["at"], entry["to"], RATE**since, tuple(entry["skipped"]))


def diverged(run: Run, recipe: Recipe, number_format: str, now: dict[str, Any], seen_good: set[str]) -> RunError:
    """Return the error that ends a training which diverges again and again: what was seen, and what to do.

    Args:
        number_format: of the base.
        now: the latest time, as an entry of the record without "to".
        seen_good: pictures of steps that were not skipped in between.
    """
    entries = [*(entry for entry in rollbacks(run) if not entry.get("settled")), now]
    skipped = [step for entry in entries for step in entry["skipped"]]
    suspects = set.intersection(*(set(step["pictures"]) for step in skipped)) - seen_good if skipped else set()
    steps = [sorted(step["step"] for step in entry["skipped"]) for entry in entries]
    kinds = {"loss": "loss", "gradient": "gradient", "overflow": "gradient (it overflows fp16)"}
    what = " or ".join(sorted({kinds[step["why"]] for step in skipped})) or "weights"
    times = len(entries) - 1
    lines = [
        f"The training diverges: the {what} is not finite, in steps {_ranges(steps[-1])}."
        if skipped
        else "The training diverges: the weights are not finite.",
        f"It was rolled back {times} time{'s' * (times != 1)}, to half the learning rate each time.",
        *(f"  At learning rate {e['learning_rate']:.3g}: steps {_ranges(s)}." for e, s in zip(entries, steps)),
        f"The base computes in {number_format}.",
    ]
    if suspects:
        lines.append(f"In every skipped step, and in no good one: {named(sorted(suspects))}.")
    elif skipped:
        lines.append("No picture was in all the skipped steps alone, so it is hardly a picture's fault.")
    return RunError("\n".join(lines), where=str(run.path), fix=_advice(run, recipe, number_format, suspects, steps))


def _advice(run: Run, recipe: Recipe, number_format: str, suspects: set[str], steps: Sequence[Sequence[int]]) -> str:
    advice = []
    if suspects:
        advice.append(f"look at {named(sorted(suspects))} and take out what is odd")
    if number_format != "float32":
        advice.append('set train.precision = "fp32"')
    if recipe.train.max_grad_norm == 0:
        advice.append("set train.max_grad_norm = 1.0")
    if not suspects:
        same = len(steps) > 1 and all(s == steps[0] for s in steps)
        advice.append("look at the base (lorasmith inspect), since the rate made no difference" if same else "")
        advice.append(f"set train.learning_rate = {recipe.train.learning_rate / 10:g}, and a longer train.warmup")
    text = "; or ".join(filter(None, advice))
    return (
        f"{text[0].upper()}{text[1:]}. The checkpoints in the run are good; to go on from the newest with such a "
        f"change: {resume_command(run.path)} --set ... --allow-changes"
    )


def _ranges(steps: Sequence[int]) -> str:
    """Return numbers as text: 3 to 7, 9."""
    parts: list[list[int]] = []
    for step in sorted(steps):
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts) or "none"
