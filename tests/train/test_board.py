"""TensorBoard reads what is written for it, and a disk that is full is told of in words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lorasmith.errors import OutputError
from lorasmith.events import Note, Sampled, StepDone, Validated
from lorasmith.train.board import Board

STEP = StepDone(3, 9, 0.25, 1e-4, 0.5, 2.0, 64.0)


def test_tensorboard_reads_figures_and_pictures(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "00.png")
    board = Board(tmp_path / "board")
    board.show(Note("nothing to draw"))
    assert not (tmp_path / "board").exists()
    for event in (Validated(0, 0.75, 0.75), STEP, Sampled(3, (tmp_path / "00.png",)), Sampled(4, ())):
        board.show(event, when=1000.0 + event.step)
    seen = EventAccumulator(str(tmp_path / "board")).Reload()  # while it is still open: nothing is held back
    assert [(e.step, e.value, e.wall_time) for e in seen.Scalars("train/loss")] == [(3, 0.25, 1003.0)]
    figures = {tag: seen.Scalars(tag)[0].value for tag in seen.Tags()["scalars"]}
    wanted = {
        "train/loss": 0.25, "train/learning_rate": 1e-4, "train/grad_norm": 0.5, "train/samples_per_second": 2.0,
        "train/memory_mib": 64.0, "validation/loss": 0.75,
    }  # fmt: skip
    assert figures == pytest.approx(wanted)
    (picture,) = seen.Images("samples/00")
    assert (picture.step, picture.width, picture.height) == (3, 16, 8)
    with Image.open(io.BytesIO(picture.encoded_image_string)) as again:
        assert np.array_equal(np.asarray(again), pixels)
    board.close()
    board.close()


def test_drawn_again_it_has_what_the_log_has_kept(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    for step in (1, 2, 3):
        board.show(StepDone(step, 9, 0.1 * step, 1e-4, 0.5, 2.0, 64.0))
    kept = {**StepDone(1, 9, 0.1, 1e-4, 0.5, 2.0, 64.0).to_json(), "time": "2026-01-01T00:00:00.000+00:00"}
    board.draw_again([kept, {**kept, "loss": None}, {"event": "of another version", "time": kept["time"]}])
    board.show(StepDone(2, 9, 0.7, 1e-4, 0.5, 2.0, 64.0))
    board.close()
    seen = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in seen.Scalars("train/loss")] == [(1, 0.1), (2, 0.7)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_told_in_words_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    board = Board(tmp_path / "board")
    monkeypatch.setattr(board, "_open", lambda: Path("/dev/full").open("wb"))  # noqa: SIM115 -- the board closes it
    with pytest.raises(OutputError, match="board cannot be written: No space left"):
        board.show(STEP)
    board.close()
    assert capfd.readouterr() == ("", "")
