from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lorasmith.bench import ours, reference
from lorasmith.bench.job import Job, Measured, Ready
from lorasmith.bench.measure import matrix_rate, timed
from lorasmith.bench.reference import StockTraining
from lorasmith.errors import RecipeError
from lorasmith.model.lora import LoraConfig, attach
from lorasmith.model.stable_diffusion import load_base

CPU = torch.device("cpu")


class Turns:
    """Gives turns of so many steps, and keeps what it is told."""

    def __init__(self, *turns: int) -> None:
        self.turns = [*turns, 0]
        self.told: list[tuple[int, int]] = []
        self.readies: list[Ready] = []
        self.seconds: list[float] = []

    def ready(self, ready: Ready) -> None:
        self.readies.append(ready)

    def take(self) -> int:
        return self.turns.pop(0)

    def taken(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def tell(self, done: int, total: int) -> None:
        self.told.append((done, total))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "matrix_rate", lambda *_: 1e9)
    monkeypatch.setattr(reference, "matrix_rate", lambda *_: 1e9)


def job(verb: str, base: Path, **changes: object) -> Job:
    fields = {"base": str(base), "batch": 2, "steps": 2, "rank": 4, "device": "cpu", "precision": "fp32", **changes}
    return Job(verb, **fields)  # type: ignore[arg-type]


def turns_taken(verb: str) -> int:
    return 2 if verb == "train" else 1


@pytest.mark.parametrize("way", [ours, reference])
@pytest.mark.parametrize(("verb", "done"), [("train", 4.0), ("generate", 2.0)])
def test_each_way_measures_the_same_work(way: object, verb: str, done: float, tiny_base: Path) -> None:
    turns = Turns(*[1] * turns_taken(verb))
    found: Measured = getattr(way, verb)(job(verb, tiny_base), turns)
    told = turns.told
    assert found.done == done
    assert found.seconds == pytest.approx(sum(turns.seconds)) and len(turns.seconds) == turns_taken(verb)
    (ready,) = turns.readies
    assert ready.seconds > 0 and ready.free_mib > 1 and 1 < ready.peak_mib <= found.peak_mib
    assert found.precision == "float32" and found.device == "cpu"
    assert found.seconds > 0 and found.peak_mib > 1 and found.flops > 0
    assert told and told[-1][0] == told[-1][1]
    assert [now for now, _ in told] == list(range(1, len(told) + 1))


def test_both_count_the_same_operations(tiny_base: Path) -> None:
    one, other = (way.train(job("train", tiny_base), Turns(1)) for way in (ours, reference))
    assert one.flops == other.flops


def test_both_load_the_same_weights(tiny_base: Path) -> None:
    one, other = (way.load(job("load", tiny_base), Turns(1, 1)) for way in (ours, reference))
    sd = load_base(str(tiny_base))
    parts = (sd.unet, sd.vae, sd.text_encoder)
    size = sum(p.numel() * 4 for part in parts for p in part.parameters()) / 1e9
    assert one.done == pytest.approx(2 * size) == pytest.approx(other.done)
    assert one.flops == other.flops == 0


def test_the_stock_training_trains_an_adapter_like_ours(tiny_base: Path, tmp_path: Path) -> None:
    pictures = reference._random_pictures(tmp_path, 32)
    training = StockTraining(str(tiny_base), [pictures], size=None, accumulation=2, rank=4, device="cpu")
    training.attach()
    before = [p.detach().clone() for p in training.parameters]
    training.step()
    own = attach(load_base(str(tiny_base)), LoraConfig(rank=4))
    assert sorted(p.numel() for p in own) == sorted(p.numel() for p in training.parameters)
    assert any(not torch.equal(old, new) for old, new in zip(before, training.parameters))
    assert all(p.isfinite().all() for p in training.parameters)
    assert not any(p.requires_grad for p in training.sd.vae.parameters())


def test_a_random_lora_leaves_the_base_as_it_was_and_is_not_zero(tiny_base: Path) -> None:
    sd = load_base(str(tiny_base))
    names = [name for name, _ in sd.unet.named_parameters()]
    lora = ours.random_lora(sd, 4)
    assert not lora.is_zero
    assert [name for name, _ in sd.unet.named_parameters()] == names


def test_a_size_that_does_not_fit_is_the_user_s_to_mend(tiny_base: Path) -> None:
    for verb in ("train", "generate"):
        with pytest.raises(RecipeError):
            getattr(ours, verb)(job(verb, tiny_base, size=33), Turns(1))


def test_the_warm_up_and_the_waiting_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    class Slow(Turns):
        def take(self) -> int:
            passes(1000.0)  # the other way's turn
            return super().take()

    monkeypatch.setattr("lorasmith.bench.measure.clock", lambda _: now[0])
    turns, steps = Slow(2, 3), list[int]()

    def step(number: int) -> None:
        steps.append(number)
        passes(2.0)

    rates = iter((3.0, 9.0))

    def yardstick() -> float:
        passes(50.0)
        return next(rates)

    assert timed(turns, CPU, step, lambda: passes(7.0), 3, yardstick) == (5, 10.0, 6.0)
    assert steps == [0, 1, 2, 3, 4] and turns.seconds == [4.0, 6.0] and turns.readies[0].seconds == 7.0


def test_the_rate_of_a_matrix_product() -> None:
    rate = matrix_rate(CPU, torch.float32, seconds=0.2)
    assert math.isfinite(rate) and rate > 1e7


def test_derived_figures() -> None:
    measured = Measured("lorasmith", "cpu", "float32", 8.0, 4.0, 3e9, 12e9, 100.0)
    assert measured.rate == 2.0
    assert measured.share == pytest.approx(0.5)
    figures = measured.to_json("train")
    assert figures["unit"] == "samples/s" and figures["tflops_per_second"] == pytest.approx(0.006)
    assert "share_of_matrix_product" not in Measured("x", "cpu", "float32", 1, 1, 0, 0, 1).to_json("load")
