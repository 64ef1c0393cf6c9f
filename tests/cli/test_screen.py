"""Every kind of event can be drawn in every way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasmith.cli import screen
from lorasmith.events import (
    CheckpointSaved,
    Event,
    Finished,
    Note,
    PictureMade,
    Progress,
    Sampled,
    StepDone,
    Validated,
    Warned,
    from_json,
)

EVENTS: list[Event] = [
    Note("a [bold]note[/bold] é"),
    Warned("careful"),
    Progress("encoding", 0, 2),
    Progress("encoding", 2, 2),
    Validated(0, 0.5, 0.5),
    StepDone(1, 3, 0.25, 1e-4, 0.5, 8.0, 1234.0),
    StepDone(2, 3, 0.25, 1e-4, 0.5, 8.0, 1234.0),
    Validated(3, 0.4, 0.5),
    Sampled(3, (Path("samples/step-000003/00.png"),)),
    Sampled(3, ()),
    CheckpointSaved(3, Path("checkpoints/step-000003")),
    PictureMade(Path("pictures/1.png"), "an axe", 5),
    Progress("encoding", 0, 4),
    Progress("encoding", 1, 4),
    Finished("train", (Path("a.safetensors"),), {"loss": 0.25}),
    Finished("generate", tuple(Path(f"p/{i}.png") for i in range(20)), {}),
]


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    finished = screen.show(iter(EVENTS))
    assert [event.stage for event in finished] == ["train", "generate"]
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "a [bold]note[/bold] é",
        "Warning: careful",
        "encoding: 2 of 2 pictures",
        "step 1 of 3: loss 0.2500, gradient 0.5, rate 0.0001, 8 pictures/s, 1,234 MiB",
        "step 2 of 3: loss 0.2500, gradient 0.5, rate 0.0001, 8 pictures/s, 1,234 MiB, 0:00:00 left",
        "Validation loss at step 0: 0.50000",
        "Validation loss at step 3: 0.40000, -20.0% from the base",
        "pictures/1.png  seed 5  an axe",
        "Finished: train (loss 0.25)",
        "  20 files in p",
    ):
        assert line in lines


def test_json_lines_come_back_as_the_same_events(capsys: pytest.CaptureFixture[str]) -> None:
    screen.show(iter(EVENTS), as_json=True)
    assert [from_json(json.loads(line)) for line in capsys.readouterr().out.splitlines()] == EVENTS


def test_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    screen.show(iter(EVENTS))
    text = capsys.readouterr().out
    for words in ("a [bold]note[/bold]", "encoding", "loss 0.2500", "Finished: train"):
        assert words in text


def test_an_error_of_a_stage_goes_through() -> None:
    def stage() -> object:
        yield Note("begun")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screen.show(stage())  # type: ignore[arg-type]
