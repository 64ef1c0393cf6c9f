"""Stopping, going on, listing and reproducing runs, from the outside."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorasmith import files
from lorasmith.cli import ask, take_up
from lorasmith.cli.main import run
from lorasmith.run_lock import RunLock
from lorasmith.run_status import find_runs, run_status

SMALL = (
    "--set=train.steps=4", "--set=train.batch=2", "--set=train.log_every=1", "--set=lora.rank=2",
    "--set=train.save_every=2", "--set=samples.steps=1", "--set=train.device=cpu", "--set=train.precision=fp32",
    "--set=samples.prompts=['an axe']",
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with pictures and a cache of its own, and no forecast, most of the time of such trainings."""
    from lorasmith.events import Forecast
    from lorasmith.train import loop

    def no_forecast(sd: Any, recipe: Any, *_: Any) -> Generator[Any, None, Any]:
        yield (forecast := Forecast({"training": 0.0}, 0.0, {"training": 0.0}))
        return recipe, forecast

    monkeypatch.setattr(loop, "foretell", no_forecast)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "axe").mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "axe" / f"{number}.png")
    yield tmp_path
    files.before = None


def stop_in_save(number: int) -> None:
    """Let a signal come within the save of step 2."""

    def before(call: str, path: Path) -> None:
        if call == "rename" and path.name == "state.safetensors" and "000002" in str(path):
            files.before = None
            signal.raise_signal(number)

    files.before = before


def test_stopped_listed_and_gone_on_with(
    tiny_base: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", "axe", "--base", str(tiny_base), *SMALL]
    stop_in_save(signal.SIGTERM)
    assert run(train) == 143
    out = capsys.readouterr()
    assert "Stopped at step 2 of 4." in out.out and "To go on: lorasmith train --resume runs/axe-001" in out.out
    assert "Traceback" not in out.err

    assert run(["runs"]) == 0
    line = capsys.readouterr().out
    assert "axe-001: stopped, step 2 of 4" in line and "checkpoint at 2" in line and "--resume runs/axe-001" in line

    # The same command again, where nobody can be asked: a new run, and a hint; with --out a refusal.
    stop_in_save(signal.SIGINT)
    assert run(train) == 130
    assert "runs/axe-001 is unfinished, at step 2 of 4" in capsys.readouterr().out
    assert run([*train, "--out", "runs/axe-001"]) == 2
    assert "unfinished run" in capsys.readouterr().err

    assert run([*train, "--out", "runs/axe-001", "--yes", "--set=lora.rank=3"]) == 2
    assert "lora.rank: 2 -> 3" in capsys.readouterr().err
    assert run([*train, "--out", "runs/axe-001", "--yes"]) == 0
    assert "Going on after step 2 of 4" in capsys.readouterr().out
    assert run(["train", "--resume", "runs/axe-002", "--json"]) == 0
    events = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [e["step"] for e in events if e["event"] == "StepDone"] == [3, 4]
    one, two = (here / "runs" / name / "lora.safetensors" for name in ("axe-001", "axe-002"))
    assert one.read_bytes() == two.read_bytes()

    assert run(["runs", "--json"]) == 0
    states = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [(s["state"], s["step"], s["saved"], s["steps"]) for s in states] == [("finished", 4, 4, 4)] * 2
    assert run(["train", "--resume", "runs/axe-001"]) == 2
    assert "The run is finished" in capsys.readouterr().err

    assert run(["reproduce", "runs/axe-001"]) == 0
    assert "lora.safetensors is identical" in capsys.readouterr().out
    assert (here / "runs" / "axe-001-again-001").is_dir()
    facts = json.loads((here / "runs" / "axe-001" / "provenance.json").read_text())
    facts["result"]["lora.safetensors"] = "0"
    (here / "runs" / "axe-001" / "provenance.json").write_text(json.dumps(facts))
    assert run(["reproduce", "runs/axe-001", "--out", "elsewhere", "--json"]) == 1


def test_the_question(
    tiny_base: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", "axe", "--base", str(tiny_base), *SMALL]
    stop_in_save(signal.SIGINT)
    assert run(train) == 130
    asked: list[str] = []

    def answer(text: str, **_: Any) -> bool:
        asked.append(text)
        return True

    monkeypatch.setattr(take_up.sys.stdin, "isatty", lambda: True, raising=False)  # type: ignore[attr-defined]
    monkeypatch.setattr(take_up.click, "confirm", answer)  # type: ignore[attr-defined]
    assert run(train) == 0
    assert asked == ["runs/axe-001 is unfinished, at step 2 of 4. Go on with it?"]
    assert [p.name for p in (here / "runs").iterdir()] == ["axe-001"]


def begun(here: Path, name: str = "axe-001") -> Path:
    """Return a run folder that somebody has just made."""
    from lorasmith.recipe.load import load_recipe
    from lorasmith.run import Run

    path = here / "runs" / name
    Run.create(path, load_recipe(None, overrides=["name=axe"])).close()
    return path


def test_a_run_in_use_names_its_owner(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = begun(here)
    lock = RunLock(path).acquire()
    try:
        assert run(["train", "axe", "--resume", "runs/axe-001"]) == 2
        text = capsys.readouterr().err
        assert "Another process is using this run folder: pid" in text and "since" in text
        assert run_status(path).state == "running"
        assert run(["runs"]) == 0
        assert "axe-001: running" in capsys.readouterr().out
        assert run(["stop", "runs/axe-001", "--no-wait"]) == 0
        assert "It finishes its step" in capsys.readouterr().out
        assert (path / "requests" / "stop").exists()
    finally:
        lock.release()
    assert run_status(path).state == "stopped"


def test_asking_waits_until_it_is_done(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = begun(here)
    lock = RunLock(path).acquire()
    naps: list[float] = []

    def obey_at_the_third(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            (path / "requests" / "save").unlink()

    monkeypatch.setattr(ask.time, "sleep", obey_at_the_third)
    assert run(["save", "runs/axe-001"]) == 0
    assert len(naps) == 3 and "Asked for and done." in capsys.readouterr().out

    def draw(seconds: float) -> None:
        for step in (3, 5):
            drawn = {"event": "Sampled", "step": step, "paths": [f"runs/axe-001/samples/step-{step:06d}/00.png"]}
            with (path / "events.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(drawn) + "\n")
        (path / "requests" / "sample").unlink()

    monkeypatch.setattr(ask.time, "sleep", draw)
    assert run(["sample", "runs/axe-001"]) == 0
    assert "Samples at step 5: runs/axe-001/samples/step-000005" in capsys.readouterr().out.replace("\\", "/")

    def die(seconds: float) -> None:
        lock.release()

    monkeypatch.setattr(ask.time, "sleep", die)
    assert run(["sample", "runs/axe-001"]) == 2
    assert "ended before it could sample" in capsys.readouterr().err
    lock = RunLock(path).acquire()
    assert run(["stop", "runs/axe-001"]) == 0
    assert "To go on: lorasmith train --resume runs/axe-001" in capsys.readouterr().out
    assert not list((path / "requests").iterdir())


@pytest.mark.parametrize("command", ["stop", "save", "sample"])
def test_asking_where_nobody_is(here: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    begun(here)
    assert run([command, "runs/axe-001"]) == 2
    assert "No process trains in this run" in capsys.readouterr().err
    assert run([command, "runs"]) == 2
    assert "axe-001" in capsys.readouterr().err
    assert run([command, "nowhere"]) == 2
    assert "Name a run's folder; lorasmith runs lists those there are." in capsys.readouterr().err


def test_statuses_are_worked_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_runs(here / "runs") == []
    assert run(["runs"]) == 0
    assert "no runs" in capsys.readouterr().out
    path = begun(here)
    assert run_status(path).state == "stopped"
    (path / "owner.json").write_text('{"host": "h", "pid": 1, "born": 0, "since": "then"}')
    os.utime(path / "owner.json", (0, 0))
    assert run_status(path).state == "died"
    (path / "recipe.toml").write_text("version = 7")
    assert run_status(path).state == "unreadable"
    assert run(["runs"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--resume", "nowhere"], "no run to go on with"),
        (["train", "--resume", "axe", "--out", "x"], "--out"),
        (["reproduce", "axe"], "no run to reproduce"),
        (["train"], "Missing argument"),
    ],
)
def test_what_cannot_be_gone_on_with(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(arguments) == 2
    assert words in capsys.readouterr().err
