"""Trainings killed with SIGKILL and resumed end as one never killed: the same bytes, the same log."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and forks")
KILLS = 40

spec = importlib.util.spec_from_file_location(
    "kill_resume", Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"
)
assert spec and spec.loader
kill: Any = importlib.util.module_from_spec(spec)
sys.modules["kill_resume"] = kill  # dataclasses look their module up
spec.loader.exec_module(kill)


@pytest.fixture(scope="module")
def worker(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    place = tmp_path_factory.mktemp("kill")
    rng = np.random.default_rng(0)
    for label, count in (("axe", 6), ("whip", 3)):
        (place / label).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(place / label / f"{i}.png")
            (place / label / f"{i}.txt").write_text(f"a pink {label} {i % 3}")
    made = kill.Worker(tiny_base, [place / "axe", place / "whip"], place / "cache")
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(worker: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Return the result of a run never killed, and how its session went."""
    path = tmp_path_factory.mktemp("whole") / "run"
    outcome = worker.train(path)
    assert outcome.end == "done", outcome.message
    return kill.Result.of(path), outcome


@pytest.mark.timeout(900)
def test_forty_kills_change_nothing(worker: Any, whole: tuple[Any, Any], tmp_path: Path) -> None:
    want, session = whole
    tally, rng, number = kill.Tally(), random.Random(0), 0
    # Before every system call of the second save and of the removal of what it supersedes, one after another.
    for match in ("step-000004", "step-000002-gone"):
        assert kill.kill_until_done(worker, tmp_path / match, kill.boundaries(match), tally)
        assert kill.Result.of(tmp_path / match) == want
    assert tally.kills >= 25
    assert {"before open", "before write", "before sync", "before rename", "before sync folder"} <= set(tally.places)
    assert "before remove" in tally.places
    while tally.kills < KILLS:
        run = tmp_path / f"run-{number}"
        number += 1
        most = min(6, KILLS - tally.kills)
        assert kill.kill_until_done(worker, run, kill.random_kills(rng, session.seconds, most), tally)
        assert kill.Result.of(run) == want
    assert max(tally.repeated) <= kill.INTERVAL


def test_what_a_kill_leaves_is_cleared_and_what_was_cut_off_the_log_is_kept(
    worker: Any, whole: tuple[Any, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert worker.train(run, match="step-000006", nth=12).end == "killed"
    log = (run / "events.jsonl").read_bytes()
    with (run / "events.jsonl").open("ab") as stream:
        stream.write(b'{"event": "StepDo')  # a line that the kill has torn
    assert any(p.name.startswith(".step-000006") for p in (run / "checkpoints").iterdir())
    assert worker.train(run).end == "done"
    assert kill.Result.of(run) == whole[0]
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-000006"]
    (aside,) = run.glob("events-set-aside-*")
    assert log.endswith(aside.read_bytes().removesuffix(b'{"event": "StepDo')) and b'"step": 5' in aside.read_bytes()
    (resumed,) = json.loads((run / "provenance.json").read_text())["resumed"]
    assert resumed["step"] == 4 and resumed["changes"] == []
    assert _scalars(run) == {step: loss for step, loss, _, _ in whole[0].steps}


def _scalars(run: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    losses = board.Scalars("train/loss")
    assert len({e.step for e in losses}) == len(losses)  # none twice
    assert [e.step for e in board.Images("samples/00")] == [0, 2, 4, 6]
    return {e.step: pytest.approx(e.value) for e in losses}


def test_more_steps_are_the_same_as_having_asked_for_them_at_once(worker: Any, tmp_path: Path) -> None:
    assert worker.train(tmp_path / "at-once", steps=8).end == "done"
    assert worker.train(tmp_path / "extended", steps=8, match="step-000006", nth=1).end == "killed"
    assert worker.train(tmp_path / "extended", steps=8).end == "done"
    assert kill.Result.of(tmp_path / "extended") == kill.Result.of(tmp_path / "at-once")


def test_a_file_that_may_not_grow_further(worker: Any, whole: tuple[Any, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert worker.train(run, match="step-000004", nth=1).end == "killed"
    size = (run / "checkpoints" / "step-000002" / "state.safetensors").stat().st_size
    limited = worker.train(run, limit=size * 19 // 20)  # the figures in its header are not always as long
    assert limited.end == "failed" and "OutputError" in limited.message and "safetensors" in limited.message
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert worker.train(run).end == "done"
    assert kill.Result.of(run) == whole[0]
