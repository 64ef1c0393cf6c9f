"""What is watched while a LoRA trains: steps that were skipped, a loss that jumps, a LoRA that stays zero.

A step whose loss or gradient is not finite is skipped on the device itself (see ``step``), so nobody waits for it.
What it was is found out when the figures are read, at the next line of the log; the pictures of a step are a function
of its number, so that they can still be named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lorasmith.events import Event, Warned

Why = Literal["loss", "gradient", "overflow"]

READ_AT_LEAST_EVERY = 50  # steps; a step in 50 that waits for the device costs nothing that can be measured
STEPS_TO_CHANGE = 50  # after which a LoRA that is still zero is warned about
# A loss scale begins at 2^16 and is halved by each gradient that overflows fp16, so that up to 16 steps in a row are
# skipped in search of one that fits. That is how mixed precision works. Only where as many again do not end it,
# though the scale is below 1 by then, is it the gradient itself that has grown too large.
_SCALE_SEARCH = 32
_SPIKE_SEEN, _SPIKE_MEMORY, _SPIKE_QUIET = 20, 50, 100  # steps: before the first, remembered, between two warnings
# Losses of few pictures vary by factors, so their logarithms are judged: standard deviations above the mean, and
# times the usual loss, both.
_SPIKE_SPREAD, _SPIKE_FACTOR = 6.0, 4.0
_TINY = 1e-12  # a loss that has a logarithm
_NAMED = 8  # pictures, on the screen


@dataclass(frozen=True)
class StepSkipped(Event):
    """A step that changed nothing: its loss or gradient was not finite, or the gradient overflowed fp16's range.

    pictures: those of the step, as class/file.
    """

    step: int
    why: Why
    pictures: tuple[str, ...]

    def __str__(self) -> str:
        if self.why == "overflow":
            return f"Step {self.step} skipped: its scaled gradient overflowed fp16, which happens; the scale is halved."
        return f"Step {self.step} skipped: its {self.why} is not finite. Its pictures: {named(self.pictures)}."


def named(pictures: Sequence[str]) -> str:
    """Return a list of pictures as text that fits a screen."""
    more = len(pictures) - _NAMED
    return ", ".join(pictures[:_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass
class Watch:
    """Judges the figures of one step after another; everything it knows goes into a checkpoint by ``state``.

    Attributes:
        limit: steps skipped in a row that are too many.
        scaled: the loss is scaled for fp16.
        row: the steps skipped in a row up to now.
        good: the latest step that was not skipped.
        mean, variance: of the logarithm of the loss, the newer steps more than the older.
    """

    limit: int
    scaled: bool = False
    row: list[tuple[int, Why]] = field(default_factory=list)
    good: int = 0
    seen: int = 0
    mean: float = 0.0
    variance: float = 0.0
    quiet_until: int = 0

    def see(self, step: int, loss: float, norm: float) -> Why | Literal["spike"] | None:
        """Take note of a step; return why it was skipped, or that its loss was a spike, or None."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            why: Why = "loss" if not math.isfinite(loss) else "overflow" if self.scaled else "gradient"
            self.row.append((step, why))
            return why
        self.row, self.good = [], step
        height = math.log(max(loss, _TINY))
        limit = self.mean + max(_SPIKE_SPREAD * math.sqrt(self.variance), math.log(_SPIKE_FACTOR))
        is_spike = self.seen >= _SPIKE_SEEN and height > limit
        usual = self.mean + 2 * math.sqrt(self.variance)
        self._learn(min(height, usual) if is_spike else height)  # a spike shall not make the next one look usual
        if not is_spike or step < self.quiet_until:
            return None
        self.quiet_until = step + _SPIKE_QUIET
        return "spike"

    @property
    def diverged(self) -> bool:
        """Whether too many steps in a row were skipped."""
        counted = sum(why != "overflow" for _, why in self.row)
        return counted >= self.limit or len(self.row) >= _SCALE_SEARCH + self.limit

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        names = ("row", "good", "seen", "mean", "variance", "quiet_until")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        for name, value in {**state, "row": [(step, why) for step, why in state["row"]]}.items():
            setattr(self, name, value)

    def _learn(self, height: float) -> None:
        """Let the running mean and variance follow: all steps alike at first, then the newer ones more."""
        self.seen += 1
        share = 1 / min(self.seen, _SPIKE_MEMORY)
        away = height - self.mean
        self.mean += share * away
        self.variance = (1 - share) * (self.variance + share * away * away)


class Figures:
    """The figures of the steps since the last line of the log, as they come from the device.

    Args:
        watch: judges them.
        pictures: names those of a step.
    """

    def __init__(self, watch: Watch, pictures: Callable[[int], tuple[str, ...]]) -> None:
        self._watch, self._pictures = watch, pictures
        self._waiting: list[tuple[int, Tensor]] = []
        self._sums, self._finite = torch.zeros(2), 0

    def add(self, step: int, figures: Tensor) -> bool:
        """Keep a step's loss and gradient norm, (2,), unread; return whether it is time to read."""
        self._waiting.append((step, figures))
        return len(self._waiting) >= READ_AT_LEAST_EVERY

    def read(self) -> Iterator[Event]:
        """Wait for the device, and say what there is to say of the steps."""
        if not self._waiting:
            return
        rows = torch.stack([figures for _, figures in self._waiting]).float().cpu()
        steps, self._waiting = [step for step, _ in self._waiting], []
        for step, row in zip(steps, rows, strict=True):
            loss, norm = row.tolist()
            usual, verdict = math.exp(self._watch.mean), self._watch.see(step, loss, norm)
            if verdict is None or verdict == "spike":
                self._sums += row
                self._finite += 1
            if verdict == "spike":
                yield _spike(step, loss, usual, self._pictures(step))
            elif verdict is not None:
                yield StepSkipped(step, verdict, self._pictures(step))

    def means(self) -> tuple[float, float] | None:
        """Return the mean loss and gradient norm of the steps that were not skipped; None if all were."""
        if not self._finite:
            return None
        loss, norm = (self._sums / self._finite).tolist()
        return loss, norm


def _spike(step: int, loss: float, usual: float, pictures: Sequence[str]) -> Warned:
    return Warned(
        f"The loss jumped to {loss:.4g} in step {step}; {usual:.4g} is usual. Its pictures: {named(pictures)}. To do: "
        "look at them if they come again; if jumps are frequent, lower train.learning_rate."
    )


def zero_lora(step: int) -> Warned:
    """Return the warning of a LoRA whose B matrices are all zero after ``step`` steps."""
    return Warned(
        f"After {step} steps the LoRA is still zero, so it changes nothing. To do: stop, and look whether steps are "
        "skipped; if not, raise train.learning_rate."
    )


def no_effect(step: int) -> Warned:
    """Return the warning of a LoRA with which the base predicts exactly what it did."""
    return Warned(
        f"After {step} steps the LoRA changes nothing in what the base predicts: the validation loss is the same to "
        'the last digit. To do: raise train.learning_rate, or set train.precision = "fp32".'
    )


def validation_not_finite(step: int) -> Warned:
    """Return the warning of a validation loss that is not finite."""
    whose = "The base's own validation loss" if step == 0 else f"The validation loss at step {step}"
    after = "There will be none" if step == 0 else "It is left out; which checkpoint is best is judged without it"
    return Warned(
        f'{whose} is not finite. {after}. To do: set train.precision = "fp32"'
        + ("." if step == 0 else ", or lower train.learning_rate.")
    )
