"""Draw events: progress bars on a terminal, plain lines elsewhere, or one JSON object a line."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lorasmith import events as ev
from lorasmith.files import json_text

_PLAIN_SECONDS = 10.0  # between two lines of progress of one stage where there are no bars
_FILES_LISTED = 8


class _Painter(AbstractContextManager["_Painter"], Protocol):
    def draw(self, event: ev.Event) -> None: ...


def show(events: Iterator[ev.Event], *, as_json: bool = False) -> list[ev.Finished]:
    """Draw ``events`` until they end, and return those that say that a stage has finished.

    Raises:
        LorasmithError, KeyboardInterrupt: as the stage does; what it had to say before has been drawn.
    """
    finished = []
    with _Json() if as_json else _Bars() if Console().is_terminal else _Lines() as painter:
        for event in events:
            painter.draw(event)
            if isinstance(event, ev.Finished):
                finished.append(event)
    return finished


def say(message: str = "") -> None:
    """Print one line for a person, as it is."""
    _print(_Console(), message)


def print_json(value: object) -> None:
    """Print one JSON value on one line, in UTF-8 whatever the terminal's encoding is."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        sys.stdout.write(json_text(value) + "\n")
        sys.stdout.flush()
    except OSError as error:
        _mute(error)


class _Json(AbstractContextManager["_Json"]):
    def draw(self, event: ev.Event) -> None:
        print_json(event.to_json())

    def __exit__(self, *_: object) -> None:
        pass


class _Lines(AbstractContextManager["_Lines"]):
    """For logs and pipes: one line for an event, and now and then one for progress."""

    def __init__(self) -> None:
        self.console = _Console()
        self.said: dict[str, float] = {}
        self.over: set[str] = set()
        self.pace = _Pace()

    def draw(self, event: ev.Event) -> None:
        if isinstance(event, ev.Progress):
            now = time.monotonic()
            if event.done == 0:
                self.said[event.stage] = now
            over = event.done == event.total and event.stage not in self.over  # short stages come again and again
            if over or now - self.said.get(event.stage, now) >= _PLAIN_SECONDS:
                self.said[event.stage] = now
                _print(self.console, f"{event.stage}: {event.done} of {event.total} {event.unit}")
            if over:
                self.over.add(event.stage)
        elif isinstance(event, ev.StepDone):
            _print(self.console, f"step {event.step} of {event.total}: {_figures(event)}{self.pace.left(event)}")
        else:
            _print(self.console, line(event))

    def __exit__(self, *_: object) -> None:
        pass


class _Bars(AbstractContextManager["_Bars"]):
    """For a terminal: a bar for each stage, with the time left; everything else scrolls by above."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def draw(self, event: ev.Event) -> None:
        if isinstance(event, ev.Progress):
            self._bar(event.stage, event.done, event.total, event.unit, "")
        elif isinstance(event, ev.StepDone):
            self._bar("train", event.step, event.total, "steps", _figures(event))
        else:
            _print(self.progress.console, line(event))

    def _bar(self, stage: str, done: int, total: int, unit: str, figures: str) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total, unit=unit, figures=figures)
        elif done == 0:
            self.progress.reset(self.tasks[stage], total=total)
        self.progress.update(self.tasks[stage], completed=done, total=total, figures=figures)


class _Pace:
    """Time left, from how fast the steps since the first event went."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def left(self, event: ev.StepDone) -> str:
        now = time.monotonic()
        if self.first is None:
            self.first = (event.step, now)
        steps = event.step - self.first[0]
        if steps <= 0:
            return ""
        seconds = (now - self.first[1]) / steps * (event.total - event.step)
        return f", {timedelta(seconds=round(seconds))} left"


def line(event: ev.Event) -> str:
    """Return one event as text for a person."""
    if isinstance(event, ev.Note):
        return event.message
    if isinstance(event, ev.Warned):
        return f"Warning: {event.message}"
    if isinstance(event, ev.Validated):
        change = f", {event.loss / event.base_loss - 1:+.1%} from the base" if event.step and event.base_loss else ""
        return f"Validation loss at step {event.step}: {event.loss:.5f}{change}"
    if isinstance(event, ev.Forecast):
        return _forecast(event)
    if isinstance(event, ev.PictureMade):
        return f"{event.path}  seed {event.seed}  {event.prompt}"
    if isinstance(event, ev.Sampled):
        return f"Samples at step {event.step}: {event.paths[0].parent if event.paths else 'none'}"
    if isinstance(event, ev.CheckpointSaved):
        return f"Checkpoint at step {event.step}: {event.path}"
    if isinstance(event, ev.Finished):
        return _finished(event)
    return str(event)


def _forecast(event: ev.Forecast) -> str:
    phase = max(event.memory_mib, key=lambda name: event.memory_mib[name])
    parts = ", ".join(f"{name} {timedelta(seconds=round(s))}" for name, s in event.seconds.items() if s >= 1)
    return (
        f"Forecast: about {timedelta(seconds=round(sum(event.seconds.values())))}{f' ({parts})' if parts else ''}; "
        f"{event.memory_mib[phase]:,.0f} MiB of memory at the most ({phase}), of {event.room_mib:,.0f}"
    )


def _finished(event: ev.Finished) -> str:
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.5g}" for name, value in event.figures.items())
    files = event.files
    if len(files) > _FILES_LISTED:
        listed = f"\n  {len(files)} files in {files[0].parent}"
    else:
        listed = "".join(f"\n  {path}" for path in files)
    return f"Finished: {event.stage}{f' ({figures})' if figures else ''}{listed}"


def _figures(event: ev.StepDone) -> str:
    return (
        f"loss {event.loss:.4f}, gradient {event.grad_norm:.3g}, rate {event.learning_rate:.2g}, "
        f"{event.samples_per_second:.3g} pictures/s, {event.memory_mib:,.0f} MiB"
    )


def _print(console: Console, text: str) -> None:
    try:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    except OSError as error:
        _mute(error)


class _Console(Console):
    """Rich's own ends the program when a pipe's reader has gone."""

    def on_broken_pipe(self) -> None:
        _mute(BrokenPipeError())


def _mute(error: OSError) -> None:
    """Go on in silence after the output was refused: a reader such as ``head`` has gone, or a log's disk is full.

    Hours of training shall not end with their log.
    """
    if not isinstance(error, BrokenPipeError):
        with suppress(OSError):
            sys.stderr.write(f"Warning: the output cannot be written ({error.strerror}); the work goes on.\n")
    with suppress(OSError):  # no file behind it, as in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
