"""Going on: exactly, from the newest checkpoint that is true, and only with what the run began with."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorasmith import files
from lorasmith.errors import OutputError, RunError
from lorasmith.events import (
    CheckpointSaved,
    Event,
    Finished,
    Forecast,
    Note,
    Progress,
    Sampled,
    StepDone,
    Validated,
    Warned,
)
from lorasmith.model.formats import read_lora
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_log import read_log
from lorasmith.train import disk, loop
from lorasmith.train.control import ask
from lorasmith.train.interrupt import Stopped
from lorasmith.train.loop import train
from lorasmith.train.reproduce import recorded, reproduce

MakeRecipe = Callable[..., Recipe]
TRAIN = {"steps": 4, "save_every": 2, "log_every": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do without the forecast, most of the time of so short a training."""

    def no_forecast(sd: Any, recipe: Recipe, *_: Any) -> Generator[Event, None, tuple[Recipe, Forecast]]:
        yield (forecast := Forecast({"training": 0.0}, 0.0, {"training": 0.0}))
        return recipe, forecast

    monkeypatch.setattr(loop, "foretell", no_forecast)
    yield
    files.before = None


def go(run: Run, recipe: Recipe | None = None, **options: Any) -> list[Event]:
    with run:
        return list(train(recipe or run.recipe, run, **options))


def of(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def text(events: list[Event]) -> str:
    return " ".join(e.message for e in events if isinstance(e, (Note, Warned)))


def until(run: Run, is_there: Callable[[Event], bool], number: int = signal.SIGTERM) -> tuple[list[Event], int]:
    """Train until an event, and send a signal then; return the events and the exit code."""
    events = []
    with run, pytest.raises(Stopped) as caught:
        for event in train(run.recipe, run):
            events.append(event)
            if is_there(event):
                signal.raise_signal(number)
                is_there = lambda _: False  # noqa: E731
    return events, caught.value.code


def stage(name: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Progress) and event.stage == name


def files_of(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ("lora.safetensors", "lora-kohya.safetensors")]


def test_stopped_in_every_phase_and_gone_on_with(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(train=TRAIN)
    path = tmp_path / "run"
    events, code = until(Run.create(path, recipe), stage("encoding"))
    assert code == 143 and "Stopped before the training began" in text(events)
    assert not of(events, StepDone)
    phases: list[tuple[Callable[[Event], bool], list[int]]] = [
        (stage("validation"), []),  # of the base
        (stage("samples"), []),
        (lambda e: isinstance(e, StepDone) and e.step == 1, [1]),
        (lambda e: isinstance(e, CheckpointSaved) and e.step == 2, [2]),
        (lambda e: isinstance(e, Progress) and e.stage == "samples", [2]),
    ]
    saved: list[int] = []
    for is_there, steps in phases:
        events, code = until(Run.open(path), is_there)
        assert code == 143
        assert f"lorasmith train --resume {path}" in events[-1].message  # type: ignore[attr-defined]
        saved += [e.step for e in of(events, CheckpointSaved)]
        assert set(steps) <= set(saved)
    events = go(Run.open(path))
    assert "Going on after step 2 of 4" in text(events)
    whole = go(Run.create(tmp_path / "whole", recipe))
    assert files_of(path) == files_of(tmp_path / "whole")

    log = read_log(path)
    for kind, expected in ((StepDone, [1, 2, 3, 4]), (Validated, [0, 2, 4]), (Sampled, [0, 2, 4])):
        assert [r["step"] for r in log if r["event"] == kind.__name__] == expected
    losses = [(e.step, e.loss, e.grad_norm) for e in of(whole, StepDone)]
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in log if r["event"] == "StepDone"] == losses
    one, other = of(events, Finished)[0].figures, of(whole, Finished)[0].figures
    assert {k: v for k, v in one.items() if k != "samples_per_second"} == {
        k: v for k, v in other.items() if k != "samples_per_second"
    }
    assert len(json.loads((path / "provenance.json").read_text())["resumed"]) == 6


def test_sigterm_within_a_save_lets_it_end(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    sent = []

    def before(call: str, path: Path) -> None:
        if call == "rename" and path.name == "manifest.json" and not sent:
            sent.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    files.before = before
    run = Run.create(tmp_path / "run", make_recipe(train=TRAIN))
    with run, pytest.raises(Stopped) as caught:
        list(train(run.recipe, run))
    assert sent and caught.value.code == 143
    assert [p.name for p in run.checkpoints()] == ["step-000002"]
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["step-000002"]


def test_a_second_signal_within_a_save_leaves_nothing_half(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def before(call: str, path: Path) -> None:
        if call == "rename" and path.name == "manifest.json" and "000004" in str(path):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    files.before = before
    run = Run.create(tmp_path / "run", make_recipe(train=TRAIN))
    with run, pytest.raises(Stopped):
        list(train(run.recipe, run))
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["step-000002"]


def test_the_newest_checkpoint_that_is_true_is_taken(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(train=TRAIN)
    go(Run.create(tmp_path / "whole", recipe))
    path = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", path)
    with pytest.raises(RunError, match="finished: all 4") as caught:
        go(Run.open(path))
    assert "--set train.steps=8" in str(caught.value)
    assert files_of(path) == files_of(tmp_path / "whole")
    assert read_log(path)[-1]["event"] == "Finished"  # refusing has changed nothing

    broken = path / "checkpoints" / "step-000004" / "state.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1] + b"\x7f")
    events = go(Run.open(path))
    assert "Passed over step-000004: state.safetensors is damaged" in text(events)
    assert [e.step for e in of(events, StepDone)] == [3, 4]
    assert [e.step for e in of(events, Sampled)] == [4]  # those of the base and of step 2 are there
    assert files_of(path) == files_of(tmp_path / "whole")
    assert len(list((path / "checkpoints").glob("set-aside-step-000004-*"))) == 1


def test_samples_that_are_gone_are_drawn_again(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = tmp_path / "run"
    until(Run.create(path, make_recipe(train=TRAIN)), lambda e: isinstance(e, Sampled) and e.step == 2)
    before = (path / "samples" / "step-000002" / "00.png").read_bytes()
    (path / "samples" / "step-000002" / "00.png").unlink()
    events = go(Run.open(path))
    assert [e.step for e in of(events, Sampled)] == [2, 4]
    assert (path / "samples" / "step-000002" / "00.png").read_bytes() == before


def test_what_has_changed_is_named_item_by_item(
    make_recipe: MakeRecipe, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    until(Run.create(path, make_recipe(train=TRAIN)), lambda e: isinstance(e, StepDone) and e.step == 1)
    log = (path / "events.jsonl").read_bytes()
    provenance = json.loads((path / "provenance.json").read_text())
    provenance["packages"]["torch"] = "1.0"
    provenance |= {"base_sha256": "0" * 64, "number_format": "bfloat16"}
    (path / "provenance.json").write_text(json.dumps(provenance))
    Image.new("RGB", (32, 32)).save(folders[0] / "0.png")
    other = make_recipe(train={**TRAIN, "learning_rate": 2e-2}, lora={"dropout": 0.5})
    with pytest.raises(RunError) as caught:
        go(Run.open(path), other)
    message = str(caught.value)
    for words in (
        "lora.dropout: 0.0 -> 0.5", "train.learning_rate: 0.01 -> 0.02", "torch: 1.0 -> ", "the base's weights",
        "the pictures or captions", "number format: bfloat16 -> float32", "--allow-changes",
    ):  # fmt: skip
        assert words in message
    assert message.count("\n  - ") == 6
    assert (path / "events.jsonl").read_bytes() == log

    events = go(Run.open(path), other, allow_changes=True)
    assert "Changed since this run began: torch: 1.0" in text(events)
    assert of(events, Finished)
    resumed = json.loads((path / "provenance.json").read_text())["resumed"]
    assert len(resumed[0]["changes"]) == 6
    with Run.open(path) as run:
        assert run.recipe == other


def test_more_steps_are_allowed_and_fewer_than_done_are_not(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = tmp_path / "run"
    go(Run.create(path, make_recipe(train={**TRAIN, "steps": 2})))
    events = go(Run.open(path), make_recipe(train={**TRAIN, "steps": 3, "keep_last": 2}))
    assert "train.steps: 2 -> 3" in text(events)
    assert [e.step for e in of(events, StepDone)] == [3]
    assert read_lora(path / "lora.safetensors").metadata["steps"] == "3"
    with pytest.raises(RunError, match="has 3 steps behind it"):
        go(Run.open(path), make_recipe(train={**TRAIN, "steps": 2}))  # said before what else has changed


def test_what_another_process_asks_for(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorasmith.train.control._EVERY", 0.0)
    run = Run.create(tmp_path / "run", make_recipe(train={"steps": 50, "save_every": 50, "log_every": 50}))
    wanted = {0: "save", 1: "sample", 3: "stop"}
    seen = 0
    events: list[Event] = []
    with run, pytest.raises(Stopped) as caught:
        for event in train(run.recipe, run):
            events.append(event)
            if isinstance(event, (Sampled, CheckpointSaved)):
                if seen in wanted:
                    ask(run.path, wanted[seen])
                seen += 1
    assert caught.value.code == 130
    assert [type(e).__name__ for e in of(events, (Sampled, CheckpointSaved))] == [  # type: ignore[arg-type]
        "Sampled", "CheckpointSaved", "CheckpointSaved", "Sampled",
    ]  # fmt: skip
    assert not {"save", "stop"} & {p.name for p in (run.path / "requests").iterdir()}
    steps = [p.name for p in run.checkpoints()]
    assert steps == ["step-000001", "step-000002"] and not (run.path / "lora.safetensors").exists()


def test_checkpoints_that_are_not_kept_go(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 6, "save_every": 1, "keep_last": 1, "keep_every": 4}, data={"validation": 0.0})
    events = go(Run.create(tmp_path / "run", recipe))
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    assert "The checkpoint at step 3 is no longer kept." in text(events)


def test_the_disk_is_asked_before_the_first_step(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk.kept_checkpoints(make_recipe(train={"steps": 100, "save_every": 1, "keep_last": 3}), 100) == 4
    assert disk.kept_checkpoints(make_recipe(train={"steps": 9, "save_every": 1, "keep_every": 3}), 9) == 9
    events: list[Event] = []
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30, 2**20))  # type: ignore[attr-defined]
    with Run.create(tmp_path / "run", make_recipe()) as run, pytest.raises(OutputError, match="too full"):
        for event in train(run.recipe, run):
            events.append(event)
    assert not of(events, Sampled)


def test_a_disk_that_fills_up_while_training_ends_the_run_with_its_last_checkpoint(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def before(call: str, path: Path) -> None:
        if call == "write" and ".step-000004" in str(path):
            raise OSError(28, "No space left on device")

    recipe = make_recipe(train=TRAIN)
    files.before = before
    with pytest.raises(OutputError, match=r"lora\.safetensors cannot be written: No space left"):
        go(Run.create(tmp_path / "run", recipe))
    files.before = None
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    go(Run.open(tmp_path / "run"))
    go(Run.create(tmp_path / "whole", recipe))
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_a_run_is_reproduced(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    go(Run.create(tmp_path / "run", make_recipe(train=TRAIN, lora={"dropout": 0.1, "text_encoder": True})))
    recipe, facts = recorded(tmp_path / "run")
    with Run.create(tmp_path / "again", recipe) as run:
        events = list(reproduce(tmp_path / "run", facts, run))
    assert of(events, Finished)[-1].figures == {"files_different": 0.0}
    assert files_of(tmp_path / "run") == files_of(tmp_path / "again")
    about = read_lora(tmp_path / "run" / "lora.safetensors").metadata
    told = json.loads(about["recipe"])
    assert told["train"]["steps"] == 4 and told["data"]["folders"] == ["axe", "whip"]
    assert json.loads(about["packages"])["torch"] and about["seed"] == "0"
    assert str(tmp_path) not in json.dumps(about)

    facts["result"]["lora.safetensors"] = "0" * 64
    facts["packages"]["torch"] = "1.0"
    with Run.create(tmp_path / "other", recipe) as run:
        events = list(reproduce(tmp_path / "run", facts, run))
    assert of(events, Finished)[-1].figures == {"files_different": 1.0, "largest_difference": 0.0}
    assert "torch: 1.0 -> " in text(events) and "lora.safetensors is not the same" in text(events)


def test_what_keeps_a_run_from_being_reproduced_is_said(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = tmp_path / "run"
    go(Run.create(path, make_recipe(train={**TRAIN, "steps": 1})))
    provenance = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps({**provenance, "threads": 64, "processes": 2}))
    events = go(Run.open(path), make_recipe(train={**TRAIN, "steps": 2}))
    assert f"Threads: 64 -> {provenance['threads']}" in text(events)
    recipe, facts = recorded(path)
    facts |= {"threads": 64, "processes": 2}
    with Run.create(tmp_path / "again", recipe) as run:
        told = text(list(reproduce(path, facts, run)))
    for words in ("train.steps: 1 -> 2", "trained by 2 processes", f"threads: 64 -> {provenance['threads']}"):
        assert words in told


def test_what_cannot_be_reproduced_is_said(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run to reproduce"):
        recorded(tmp_path)
    Run.create(tmp_path / "run", make_recipe()).close()
    with pytest.raises(RunError, match="has not been finished"):
        recorded(tmp_path / "run")
