"""What happened, as frozen values.

Every long verb is a generator of these. The command line draws them, a run appends them to
``events.jsonl``, tests count them. A stage never prints and never knows who listens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON-ready values; paths become strings with forward slashes."""
        return {"event": type(self).__name__, **{k: _plain(v) for k, v in asdict(self).items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


@dataclass(frozen=True)
class Note(Event):
    """Something worth one line on the screen."""

    message: str


@dataclass(frozen=True)
class Warned(Event):
    """Something doubtful that did not stop the work."""

    message: str


@dataclass(frozen=True)
class Progress(Event):
    """``done`` of ``total`` units of a stage are finished. The first event of a stage has ``done == 0``."""

    stage: str
    done: int
    total: int
    unit: str = "pictures"


@dataclass(frozen=True)
class Forecast(Event):
    """What a training will need, told before it begins.

    memory_mib: the peak in each phase, of a GPU's memory or of the process. room_mib: what there is for it.
    seconds: of each kind of work over the whole training.
    """

    memory_mib: dict[str, float]
    room_mib: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class StepDone(Event):
    """One optimizer step. ``loss`` and ``grad_norm`` are means since the last such event."""

    step: int
    total: int
    loss: float
    learning_rate: float
    grad_norm: float
    samples_per_second: float
    memory_mib: float


@dataclass(frozen=True)
class Validated(Event):
    """The validation loss at a step; step 0 is the base."""

    step: int
    loss: float
    base_loss: float


@dataclass(frozen=True)
class PictureMade(Event):
    """A generated picture is on disk."""

    path: Path
    prompt: str
    seed: int


@dataclass(frozen=True)
class Sampled(Event):
    """The sample pictures of a checkpoint are on disk; step 0 is the base."""

    step: int
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A complete checkpoint is on disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Finished(Event):
    """The verb is done. ``files`` are what it made, ``figures`` what it measured."""

    stage: str
    files: tuple[Path, ...]
    figures: dict[str, float]


_KINDS = {
    kind.__name__: kind
    for kind in (Note, Warned, Progress, Forecast, StepDone, Validated, PictureMade, Sampled, CheckpointSaved, Finished)
}


def from_json(record: dict[str, Any]) -> Event:
    """Return the event that ``to_json`` wrote.

    Raises:
        KeyError: the record names no known event, or lacks a field.
    """
    kind = _KINDS[record["event"]]
    values: dict[str, Any] = {}
    for field in fields(kind):
        value = record[field.name]
        if field.name == "path":
            value = Path(value)
        elif field.name in ("paths", "files"):
            value = tuple(Path(v) for v in value)
        values[field.name] = value
    return kind(**values)
