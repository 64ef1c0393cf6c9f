"""What is watched in the steps: those that are not finite are skipped and named; jumps and zeros are warned about."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorasmith.events import CheckpointSaved, Finished, StepDone, Validated, Warned
from lorasmith.model.formats import read_lora
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_log import read_log
from lorasmith.train import guards, loop
from lorasmith.train.guards import Figures, StepSkipped, Watch, named
from lorasmith.train.trainer import Trainer

from .helpers import latent_set, text_set
from .injected import Fault, go, inject, no_gradient, no_loss, of, same, state_of, without_forecast, words

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_forecast(monkeypatch)


def trainer_of(sd: StableDiffusion, recipe: Recipe) -> Trainer:
    return Trainer(sd, recipe, latent_set(), text_set(sd))


@pytest.mark.parametrize("fault", [no_loss, no_gradient])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("at", [1, 3])
def test_a_step_that_is_not_finite_changes_nothing(
    sd: StableDiffusion, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, fault: Fault, fused: bool, at: int
) -> None:
    inject(monkeypatch, fault, lambda _, step: step == at)
    trainer = trainer_of(sd, make_recipe())
    if not fused:
        trainer.optimizer = torch.optim.AdamW(trainer._groups(), weight_decay=0.01, fused=False)
    for _ in range(at - 1):
        assert torch.isfinite(trainer.advance()).all()
    before = state_of(trainer)
    figures = trainer.advance()
    assert math.isfinite(figures[0]) == (fault is no_gradient) and not math.isfinite(figures[1])
    after = state_of(trainer)
    assert same(before, after[: len(before)])
    assert not any(tensor.any() for tensor in after[len(before) :])  # moments that were made in the first step
    assert torch.isfinite(trainer.advance()).all()
    assert not same(before, state_of(trainer))


def test_skipping_waits_for_no_device_in_fp16_either(
    sd: StableDiffusion, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, no_gradient, lambda _, step: step == 2)
    trainer = trainer_of(sd, make_recipe())
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.advance()
    before, scale = state_of(trainer), trainer.scaler.get_scale()
    trainer.advance()
    assert same(before, state_of(trainer)) and trainer.scaler.get_scale() == scale / 2
    trainer.advance()
    assert not same(before, state_of(trainer)) and trainer.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("log_every", [1, 4])
def test_skipped_steps_are_named_and_do_not_spoil_the_others(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    train = {"steps": 8, "save_every": 8, "log_every": log_every}
    inject(monkeypatch, no_loss, lambda _, step: step in (2, 5, 6))
    events = go(Run.create(tmp_path / "run", make_recipe(train=train)))
    skipped = of(events, StepSkipped)
    assert [(e.step, e.why) for e in skipped] == [(2, "loss"), (5, "loss"), (6, "loss")]
    done = of(events, StepDone)
    assert [e.step for e in done] == ([1, 3, 4, 7, 8] if log_every == 1 else [4, 8])
    assert all(math.isfinite(e.loss) and math.isfinite(e.grad_norm) for e in done)
    lora = read_lora(of(events, Finished)[0].files[0])
    assert not lora.is_zero and all(tensor.isfinite().all() for tensor in lora.tensors.values())
    log = [r for r in read_log(tmp_path / "run") if r["event"] == "StepSkipped"]
    assert [r["step"] for r in log] == [2, 5, 6]
    assert all(set(r["pictures"]) <= {f"{c}/{i}.png" for c in ("axe", "whip") for i in range(6)} for r in log)
    assert named(skipped[0].pictures) in str(skipped[0]) and "Step 2 skipped: its loss" in str(skipped[0])


def test_the_mean_is_that_of_the_steps_that_were_taken(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"steps": 6, "save_every": 6}
    inject(monkeypatch, no_loss, lambda _, step: step == 2)
    one = go(Run.create(tmp_path / "each", make_recipe(train={**train, "log_every": 1})))
    all_ = go(Run.create(tmp_path / "all", make_recipe(train={**train, "log_every": 6})))
    (whole,), parts = of(all_, StepDone), of(one, StepDone)
    assert len(parts) == 5
    assert whole.loss == pytest.approx(sum(e.loss for e in parts) / 5, rel=1e-6)
    assert whole.grad_norm == pytest.approx(sum(e.grad_norm for e in parts) / 5, rel=1e-6)


def test_the_names_are_those_of_the_pictures_that_were_drawn(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, set[str]] = {}
    real = Trainer._draw

    def recording(self: Trainer, step: int) -> Any:
        draws = real(self, step)
        examples = [self.latents.examples[i] for i in draws.picture.tolist()]
        drawn[step] = {f"{e.label}/{e.path.name}" for e in examples}
        return draws

    monkeypatch.setattr(Trainer, "_draw", recording)
    inject(monkeypatch, no_loss, lambda _, step: step % 3 == 0)
    events = go(Run.create(tmp_path / "run", make_recipe(train={"steps": 9, "accumulation": 2})))
    assert [(e.step, set(e.pictures)) for e in of(events, StepSkipped)] == [(s, drawn[s]) for s in (3, 6, 9)]


def test_a_long_way_between_two_lines_is_looked_at_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "READ_AT_LEAST_EVERY", 3)
    figures = Figures(Watch(5), lambda step: (f"{step}.png",))
    assert [figures.add(step, torch.tensor([float(step), 1.0])) for step in (1, 2, 3)] == [False, False, True]
    assert list(figures.read()) == [] and list(figures.read()) == []
    figures.add(4, torch.tensor([float("inf"), 1.0]))
    (skipped,) = figures.read()
    assert skipped == StepSkipped(4, "loss", ("4.png",))
    assert figures.means() == (2.0, 1.0)


def test_overflow_in_fp16_is_usual_until_it_does_not_end() -> None:
    inf = float("inf")
    plain, scaled = Watch(3), Watch(3, scaled=True)
    for step in range(1, 4):
        assert plain.see(step, 1.0, inf) == "gradient" and scaled.see(step, 1.0, inf) == "overflow"
    assert plain.diverged and not scaled.diverged
    for step in range(4, 17):  # from a scale of 2^16 down to 1
        scaled.see(step, 1.0, inf)
        assert not scaled.diverged
    for step in range(17, 60):
        scaled.see(step, 1.0, inf)
    assert scaled.diverged
    assert scaled.see(60, 1.0, 1.0) is None and not scaled.diverged and scaled.good == 60
    for step in range(61, 64):  # a loss is not scaled
        assert scaled.see(step, inf, inf) == "loss"
    assert scaled.diverged


def losses(seed: int, count: int) -> list[float]:
    """Return losses as noisy as those of single pictures: their logarithms normal, of deviation 0.6."""
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.6).exp().mul(0.1).tolist()


def test_a_jump_of_the_loss_is_told_once_and_noise_is_not() -> None:
    watch = Watch(5)
    told = [step for step, loss in enumerate(losses(0, 2000), start=1) if watch.see(step, loss, 1.0)]
    assert told == []
    jumps = {30: "spike", 32: None, 60: None, 140: "spike"}  # the next is told 100 steps later
    watch = Watch(5)
    for step, loss in enumerate(losses(1, 200), start=1):
        assert watch.see(step, 5.0 if step in jumps else loss, 1.0) == jumps.get(step)
    watch = Watch(5)
    assert [watch.see(step, 5.0 if step == 10 else 0.1, 1.0) for step in range(1, 15)] == [None] * 14  # too early


def test_a_watch_goes_on_as_if_it_had_never_stopped() -> None:
    whole, parts = Watch(5), Watch(5)
    for step, loss in enumerate([*losses(2, 60), float("nan"), float("nan")], start=1):
        restored = Watch(5)
        restored.restore(json.loads(json.dumps(parts.state())))
        assert whole.see(step, loss, 1.0) == restored.see(step, loss, 1.0)
        parts = restored
        assert parts == whole
    assert parts.row == [(61, "loss"), (62, "loss")] and parts.good == 60


def test_a_jump_in_a_training_is_warned_about_with_its_pictures(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, lambda errors: errors * 100, lambda _, step: step == 24)
    recipe = make_recipe(train={"steps": 26, "save_every": 26, "learning_rate": 1e-4})
    warned = [e.message for e in of(go(Run.create(tmp_path / "run", recipe)), Warned)]
    (jump,) = [message for message in warned if "loss jumped" in message]
    assert "in step 24" in jump and ".png" in jump


def test_a_lora_that_stays_zero_is_warned_about(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(train={"steps": 4, "learning_rate": 1e-45})
    events = go(Run.create(tmp_path / "zero", recipe))
    assert read_lora(tmp_path / "zero" / "lora.safetensors").is_zero
    assert "After 4 steps the LoRA is still zero" in words(events)
    assert "changes nothing in what the base predicts" in words(events)
    assert "zero" not in words(go(Run.create(tmp_path / "learning", make_recipe(train={"steps": 4}))))

    # Not zero, and yet of no effect in so coarse a number format.
    recipe = make_recipe(train={"steps": 4, "learning_rate": 1e-12, "precision": "bf16"})
    told = words(go(Run.create(tmp_path / "tiny", recipe)))
    assert not read_lora(tmp_path / "tiny" / "lora.safetensors").is_zero
    assert "is still zero" not in told and "changes nothing in what the base predicts" in told


def validation(values: dict[int, float]) -> Callable[..., Any]:
    count = iter(range(100))

    def loss(*_: Any) -> Any:
        yield from ()
        return values.get(next(count), 0.5)

    return loss


def test_a_validation_loss_that_is_not_finite_is_warned_about_and_left_out(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validation_loss", validation({0: 1.0, 1: float("nan"), 2: 0.5}))
    recipe = make_recipe(train={"steps": 6, "save_every": 2, "keep_last": 1})
    events = go(Run.create(tmp_path / "run", recipe))
    assert [(e.step, e.loss) for e in of(events, Validated)] == [(0, 1.0), (4, 0.5), (6, 0.5)]
    assert "The validation loss at step 2 is not finite" in words(events)
    assert [e.step for e in of(events, CheckpointSaved)] == [2, 4, 6]
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000004", "step-000006"]

    monkeypatch.setattr(loop, "validation_loss", validation({0: float("inf")}))
    events = go(Run.create(tmp_path / "base", recipe))
    assert of(events, Validated) == [] and words(events).count("not finite") == 1
    assert "validation_loss" not in of(events, Finished)[0].figures


def test_names_that_are_too_many_are_counted() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named([str(i) for i in range(11)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"


def test_the_figures_read_are_in_float32() -> None:
    figures = Figures(Watch(5), lambda _: ())
    values = [Tensor([0.1, 0.2]), Tensor([0.3, 0.4])]
    for step, value in enumerate(values, start=1):
        figures.add(step, value)
    list(figures.read())
    assert figures.means() == tuple(((values[0] + values[1]) / 2).tolist())
