"""A training that diverges goes back to what was good, slower, a few times; then it stops and says what was seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lorasmith import files
from lorasmith.errors import RunError
from lorasmith.events import CheckpointSaved, Event, Finished, StepDone
from lorasmith.model.checkpoint_file import open_checkpoint
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_log import read_log
from lorasmith.train.guards import StepSkipped
from lorasmith.train.loop import train
from lorasmith.train.rollback import RolledBack, rollbacks
from lorasmith.train.trainer import Trainer

from .injected import go, inject, no_loss, of, without_forecast, words

MakeRecipe = Callable[..., Recipe]
TRAIN = {"steps": 10, "save_every": 3, "log_every": 1, "warmup": 0, "schedule": "constant", "rollback_after": 2}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    without_forecast(monkeypatch)
    yield
    files.before = None


def checkpoints(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def steps_in_log(run: Path) -> list[int]:
    return [r["step"] for r in read_log(run) if r["event"] in ("StepDone", "StepSkipped")]


def require_finite_files(run: Path) -> int:
    """Read every tensor of every file of a run and return how many there are."""
    count = 0
    for path in run.rglob("*.safetensors"):
        file = open_checkpoint(path)
        for name in file.tensors:
            tensor = file.read(name)
            assert not tensor.is_floating_point() or tensor.isfinite().all(), (path, name)
            count += 1
    return count


def test_it_goes_back_to_the_last_good_checkpoint_and_on_with_half_the_rate(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_loss, lambda trainer, step: step in (8, 9) and trainer.slowings == 0)
    run = tmp_path / "run"
    events = go(Run.create(run, make_recipe(train=TRAIN)))
    (back,) = of(events, RolledBack)
    assert (back.at, back.to, back.rate) == (9, 6, 0.5)
    assert [entry["step"] for entry in back.skipped] == [8, 9] and all(entry["pictures"] for entry in back.skipped)
    assert "Rolled back from step 9 to step 6, since steps 8 to 9 were not finite" in str(back)
    assert [e.step for e in of(events, StepDone)] == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]
    assert [e.learning_rate for e in of(events, StepDone)] == [0.01] * 7 + [0.005] * 4
    assert steps_in_log(run) == list(range(1, 11))  # each once
    assert [r["event"] for r in read_log(run)].count("RolledBack") == 1
    set_aside = (run / "events-set-aside-001.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in set_aside] == [7, 8, 9]
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [e.step for e in board.Scalars("train/loss")] == list(range(1, 11))
    assert checkpoints(run) == ["step-000003", "step-000006", "step-000009", "step-000010"]
    assert require_finite_files(run) > 100 and len(rollbacks_of(run)) == 1


def rollbacks_of(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "provenance.json").read_text()).get("rollbacks", [])
    return found


def test_after_going_back_it_learns_as_with_that_rate_from_there(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the first step: then the run is, to the bit, one with half the rate from its first step on."""
    seen = inject(monkeypatch, no_loss, lambda trainer, step: step in (1, 2) and trainer.slowings == 0 and broken)
    broken = True
    recipe = make_recipe(train={**TRAIN, "steps": 4}, lora={"dropout": 0.1})
    events = go(Run.create(tmp_path / "run", recipe))
    assert seen == [1, 2] and of(events, RolledBack)[0].to == 0
    broken = False
    half = make_recipe(train={**TRAIN, "steps": 4, "learning_rate": 5e-3}, lora={"dropout": 0.1})
    plain = go(Run.create(tmp_path / "plain", half))
    one, other = ([(e.step, e.loss, e.grad_norm, e.learning_rate) for e in of(ev, StepDone)] for ev in (events, plain))
    assert one == other
    states = [tmp_path / name / "checkpoints" / "step-000003" / "state.safetensors" for name in ("run", "plain")]
    a, b = map(open_checkpoint, states)
    assert a.tensors and all(torch.equal(a.read(name), b.read(name)) for name in a.tensors)


def test_a_checkpoint_after_which_no_step_was_good_is_not_trusted(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_loss, lambda trainer, step: step in (7, 8) and trainer.slowings == 0)
    events = go(Run.create(tmp_path / "run", make_recipe(train=TRAIN)))
    (back,) = of(events, RolledBack)
    assert (back.at, back.to) == (8, 3)
    assert "Passed over step-000006: the training diverged after it" in words(events)
    names = checkpoints(tmp_path / "run")
    assert [n for n in names if n.startswith("step")] == [f"step-{n:06d}" for n in (3, 6, 9, 10)]
    assert sum(n.startswith("set-aside-step-000006") for n in names) == 1
    assert steps_in_log(tmp_path / "run") == list(range(1, 11))


def test_without_a_better_one_it_is_tried_once_before_all_begins_anew(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_loss, lambda trainer, step: step in (4, 5) and trainer.slowings < 2)
    events = go(Run.create(tmp_path / "run", make_recipe(train=TRAIN)))
    assert [(e.at, e.to, e.rate) for e in of(events, RolledBack)] == [(5, 3, 0.5), (5, 0, 0.25)]  # each told once
    assert steps_in_log(tmp_path / "run") == list(range(1, 11))
    logged = [(r["at"], r["to"], r["rate"]) for r in read_log(tmp_path / "run") if r["event"] == "RolledBack"]
    assert logged == [(5, 3, 0.5), (5, 0, 0.25)]  # though the log was cut back to before the first


def test_it_is_bounded_and_ends_with_a_diagnosis(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_loss, lambda _, step: step >= 5)
    run = tmp_path / "run"
    recipe = make_recipe(train={**TRAIN, "rollbacks": 2, "precision": "bf16"})
    events: list[Event] = []
    with Run.create(run, recipe) as made, pytest.raises(RunError) as caught:
        for event in train(recipe, made):
            events.append(event)
    assert [(e.at, e.to, e.rate) for e in of(events, RolledBack)] == [(6, 3, 0.5), (6, 3, 0.25)]
    message = str(caught.value)
    for text in (
        "the loss is not finite, in steps 5 to 6", "rolled back 2 times", "At learning rate 0.01: steps 5 to 6",
        "At learning rate 0.0025", "computes in bfloat16", 'train.precision = "fp32"', "--allow-changes",
        "look at the base", "train.learning_rate = 0.001", "hardly a picture's fault",
    ):  # fmt: skip
        assert text in message, text
    assert checkpoints(run) == ["step-000003"] and not (run / "lora.safetensors").exists()
    assert require_finite_files(run) > 50

    # It does not begin to count anew when it is only taken up again, and does once something is changed.
    with pytest.raises(RunError, match="rolled back 2 times"):
        go(Run.open(run))
    monkeypatch.undo()
    without_forecast(monkeypatch)
    other = make_recipe(train={**TRAIN, "rollbacks": 2, "precision": "bf16", "learning_rate": 1e-3})
    events = go(Run.open(run), other, allow_changes=True)
    assert of(events, Finished) and {e.learning_rate for e in of(events, StepDone)} == {1e-3}
    assert steps_in_log(run) == list(range(1, 11))


def test_the_diagnosis_names_a_picture_that_is_always_there(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_loss, lambda trainer, step: step > 1 and "whip/1.png" in trainer.pictures(step))
    train_ = {**TRAIN, "rollback_after": 1, "rollbacks": 1, "batch": 1, "steps": 40, "save_every": 40}
    recipe = make_recipe(train=train_, data={"validation": 0.0})
    with pytest.raises(RunError, match=r"and in no good one: whip/1\.png") as caught:
        go(Run.create(tmp_path / "run", recipe))
    assert caught.value.fix and caught.value.fix.startswith("Look at whip/1.png and take out what is odd")


def test_no_roll_back_at_all_if_the_recipe_says_so(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_loss, lambda _, step: step > 1)
    with pytest.raises(RunError, match="rolled back 0 times"):
        go(Run.create(tmp_path / "run", make_recipe(train={**TRAIN, "rollbacks": 0})))


def test_weights_that_are_not_finite_are_never_saved(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.advance
    seen: list[int] = []

    def breaking(self: Trainer) -> torch.Tensor:
        figures = real(self)
        if self.step == 6 and not seen:
            seen.append(6)
            self.parameters[3].data[0] = float("inf")
        return figures

    monkeypatch.setattr(Trainer, "advance", breaking)
    events = go(Run.create(tmp_path / "run", make_recipe(train=TRAIN)))
    (back,) = of(events, RolledBack)
    assert (back.at, back.to, back.skipped) == (6, 3, ()) and "a weight is not finite" in str(back)
    assert [e.step for e in of(events, CheckpointSaved)] == [3, 6, 9, 10]
    assert require_finite_files(tmp_path / "run") > 100

    # And if nobody had looked, the writer of checkpoints would refuse.
    seen.clear()
    monkeypatch.setattr(Trainer, "is_finite", lambda _: True)
    with pytest.raises(RunError, match="no longer finite; they are not saved"):
        go(Run.create(tmp_path / "unwatched", make_recipe(train=TRAIN)))
    assert checkpoints(tmp_path / "unwatched") == ["step-000003"]
    assert require_finite_files(tmp_path / "unwatched") > 50


class Killed(BaseException):
    """What a SIGKILL is to the files: nothing comes after it."""


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_killed_at_any_call_of_a_roll_back_it_goes_on_the_same_way(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """A checkpoint is set aside, the log cut, and the rate lowered: after a kill in the midst, all or nothing of it."""
    from lorasmith.train import loop, recover

    recipe = make_recipe(train={**TRAIN, "steps": 7, "save_every": 2, "rollback_after": 2})
    inject(monkeypatch, no_loss, lambda trainer, step: step in (5, 6) and trainer.slowings == 0)
    whole = go(Run.create(tmp_path / "whole", recipe))
    assert [(e.at, e.to) for e in of(whole, RolledBack)] == [(6, 2)]
    wanted = [(tmp_path / "whole" / name).read_bytes() for name in ("lora.safetensors", "lora-kohya.safetensors")]
    losses = [(r["step"], r["loss"]) for r in read_log(tmp_path / "whole") if r["event"] == "StepDone"]

    calls: list[str] = []
    real = recover.recover
    nth = 0

    def watched(*args: Any) -> Any:
        def before(call: str, path: Path) -> None:
            calls.append(f"{call} {path.name}")
            if len(calls) > nth:
                raise Killed

        files.before = before
        past = yield from real(*args)
        files.before = None
        return past

    monkeypatch.setattr(loop, "recover", watched)
    names: set[str] = set()
    for nth in range(0, 100, every):
        calls.clear()
        path = tmp_path / f"run-{nth}"
        run = Run.create(path, recipe)
        try:
            go(run)
            break  # it was not killed: that many calls there are
        except Killed:
            names |= set(calls)
        finally:
            files.before = None
        monkeypatch.setattr(loop, "recover", real)
        go(Run.open(path))
        monkeypatch.setattr(loop, "recover", watched)
        got = [(path / name).read_bytes() for name in ("lora.safetensors", "lora-kohya.safetensors")]
        assert got == wanted, calls
        log = read_log(path)
        assert [(r["step"], r["loss"]) for r in log if r["event"] == "StepDone"] == losses
        assert [r["event"] for r in log].count("RolledBack") == 1, calls
    assert nth >= 8, names
    joined = " ".join(names)
    assert "provenance.json" in joined and "events.jsonl" in joined


def test_stopped_after_a_roll_back_it_goes_on_with_the_lower_rate(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_loss, lambda trainer, step: step in (5, 6) and trainer.slowings == 0)
    recipe = make_recipe(train=TRAIN)
    whole = go(Run.create(tmp_path / "whole", recipe))
    run = Run.create(tmp_path / "run", recipe)
    with run:
        for event in train(recipe, run):
            if isinstance(event, StepDone) and event.learning_rate < 0.01:
                break  # as a kill: nothing is saved
    events = go(Run.open(tmp_path / "run"))
    assert {e.learning_rate for e in of(events, StepDone)} == {0.005}
    assert of(events, RolledBack) == of(whole, RolledBack)  # told again, since the log is cut back to before it
    assert [r["event"] for r in read_log(tmp_path / "run")].count("RolledBack") == 1
    files_ = [[(tmp_path / n / f"lora{k}.safetensors").read_bytes() for k in ("", "-kohya")] for n in ("whole", "run")]
    assert files_[0] == files_[1]
    with Run.open(tmp_path / "run") as again:
        assert len(rollbacks(again)) == 1


def test_skipped_steps_in_a_row_go_on_being_counted_after_a_stop(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_loss, lambda trainer, step: step in (3, 4) and trainer.slowings == 0)
    recipe = make_recipe(train={**TRAIN, "save_every": 1, "keep_last": 20})
    run = Run.create(tmp_path / "run", recipe)
    with run:
        for event in train(recipe, run):
            if isinstance(event, CheckpointSaved) and event.step == 3:
                break
    events = go(Run.open(tmp_path / "run"))
    assert [e.step for e in of(events, StepSkipped)] == [4]
    assert [(e.at, e.to) for e in of(events, RolledBack)] == [(4, 1)]
    assert steps_in_log(tmp_path / "run") == list(range(1, 11))
