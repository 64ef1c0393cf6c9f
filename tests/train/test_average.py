"""The moving average of the adapter: what is validated, drawn with and written, and no part of what is learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lorasmith.events import StepDone, Validated
from lorasmith.model.formats import read_lora
from lorasmith.model.lora import set_lora_weights
from lorasmith.model.stable_diffusion import load_base
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train.average import Average
from lorasmith.train.control import ask
from lorasmith.train.interrupt import Stopped
from lorasmith.train.loop import train
from lorasmith.train.trainer import Trainer

from .helpers import latent_set, text_set
from .injected import go, inject, no_loss, of, same, state_of, without_forecast

MakeRecipe = Callable[..., Recipe]
MakeTrainer = Callable[[float], Trainer]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_forecast(monkeypatch)


@pytest.fixture
def make_trainer(tiny_base: Path, make_recipe: MakeRecipe) -> MakeTrainer:
    def make(ema: float) -> Trainer:
        sd = load_base(str(tiny_base))
        return Trainer(sd, make_recipe(train={"ema": ema}, lora={"dropout": 0.1}), latent_set(), text_set(sd))

    return make


def test_it_is_the_sum_that_it_is_said_to_be() -> None:
    weights = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(weights[0].float())
    average, want = Average([parameter], 0.8), weights[0].float().double()
    for step in range(1, 30):
        parameter.data = weights[step].float()
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * weights[step].float().double()
    torch.testing.assert_close(average.tensors[0].double(), want, rtol=1e-5, atol=1e-6)


def test_what_is_learned_does_not_depend_on_it(make_trainer: MakeTrainer) -> None:
    plain, averaged = make_trainer(0.0), make_trainer(0.9)
    losses = [[trainer.advance() for _ in range(4) if trainer.lora()] for trainer in (plain, averaged)]
    assert same(*losses) and same(state_of(plain), state_of(averaged))
    lora, own = averaged.lora(), plain.lora()
    assert averaged.average and same(list(lora.tensors.values()), averaged.average.tensors)
    assert not same(list(lora.tensors.values()), list(own.tensors.values()))
    with pytest.raises(ValueError), averaged.averaged():  # whatever happens while it is looked at
        assert same(averaged.parameters, list(lora.tensors.values()))
        raise ValueError
    assert same(state_of(plain), state_of(averaged))


def test_a_checkpoint_holds_both(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    through, first, second = (make_trainer(0.9) for _ in range(3))
    for _ in range(6):
        through.advance()
    for _ in range(3):
        first.advance()
    first.save(tmp_path, {})
    written, averaged = read_lora(tmp_path / "lora.safetensors").tensors, first.lora().tensors
    assert written.keys() == averaged.keys() and all(torch.equal(written[name], averaged[name]) for name in written)
    second.restore(tmp_path)
    for _ in range(3):
        second.advance()
    assert same(state_of(second), state_of(through))
    assert same(list(second.lora().tensors.values()), list(through.lora().tensors.values()))


def test_a_training_may_go_on_with_it_or_without_it(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    for name, before, after in (("on", 0.0, 0.9), ("off", 0.9, 0.0)):
        first, second = make_trainer(before), make_trainer(after)
        for _ in range(3):
            first.advance()
        (tmp_path / name).mkdir()
        first.save(tmp_path / name, {})
        second.restore(tmp_path / name)
        assert same(state_of(first), state_of(second))  # the weights, not their average
        if second.average:
            assert same(second.average.tensors, first.parameters)


def test_a_run_ends_with_it_whether_stopped_or_not(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorasmith.train.control._EVERY", 0.0)
    settings = {"log_every": 1, "save_every": 3, "ema": 0.9}
    plain = go(Run.create(tmp_path / "plain", make_recipe(train={**settings, "ema": 0.0})))
    whole = go(Run.create(tmp_path / "whole", make_recipe(train=settings)))
    assert [e.loss for e in of(plain, StepDone)] == [e.loss for e in of(whole, StepDone)]
    ours, others = ([(e.step, e.loss) for e in of(events, Validated)] for events in (whole, plain))
    assert ours[0] == others[0] and ours[1:] != others[1:]
    with Run.create(tmp_path / "stopped", make_recipe(train=settings)) as run, pytest.raises(Stopped):
        for event in train(run.recipe, run):
            if isinstance(event, StepDone) and event.step == 2:
                ask(run.path, "stop")
    resumed = go(Run.open(tmp_path / "stopped"))
    assert [(e.step, e.loss) for e in of(resumed, Validated)] == ours[-len(of(resumed, Validated)) :]
    files = [tmp_path / name / "lora.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_validation_loss_is_that_of_the_file(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    events = go(Run.create(tmp_path / "run", make_recipe(train={"ema": 0.9, "save_every": 6})))
    told = of(events, Validated)[-1].loss
    resumed = make_recipe(train={"ema": 0.0, "save_every": 6, "steps": 7, "learning_rate": 1e-30})
    lora = read_lora(tmp_path / "run" / "lora.safetensors")

    class Given(Trainer):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            set_lora_weights(self.sd, lora)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorasmith.train.loop.Trainer", Given)
        again = go(Run.create(tmp_path / "again", resumed))
    assert of(again, Validated)[0].loss == pytest.approx(told, rel=1e-6)


def test_a_step_that_is_skipped_does_not_spoil_it(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, no_loss, lambda _, step: step == 3)
    trainer = make_trainer(0.9)
    for _ in range(4):
        trainer.advance()
    assert all(tensor.isfinite().all() for tensor in trainer.lora().tensors.values())
