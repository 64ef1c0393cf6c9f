from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lorasmith.model.stable_diffusion import StableDiffusion, load_base
from lorasmith.recipe.schema import Recipe
from lorasmith.train import placement
from lorasmith.train.placement import Supply, Tables, place
from lorasmith.train.step import Batch, Draws, draw
from lorasmith.train.trainer import Trainer

from .helpers import CAPTIONS, latent_set, text_set

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(tensor.cpu(), other._tensors()[name].cpu()) for name, tensor in one._tensors().items())


@pytest.fixture
def tables(sd: StableDiffusion) -> Tables:
    return Tables(latent_set(), text_set(sd))


def test_a_batch_is_a_function_of_its_step_alone(sd: StableDiffusion, make_recipe: Callable[..., Recipe]) -> None:
    trainer = Trainer(sd, make_recipe(), latent_set(), text_set(sd))
    forwards = [trainer.supply.take(step) for step in (1, 2, 3)]
    backwards = [trainer.supply.take(step) for step in (3, 2, 1)]
    assert all(same(one, other) for one, other in zip(forwards, reversed(backwards)))
    assert not same(forwards[0], forwards[1])


def test_the_pictures_of_the_steps_are_those_of_the_sampler_s_stream(
    sd: StableDiffusion, make_recipe: Callable[..., Recipe]
) -> None:
    trainer = Trainer(sd, make_recipe(), latent_set(), text_set(sd))
    drawn = [trainer._draw(step).picture.tolist() for step in (1, 2, 3, 4)]
    trainer.sampler.restore({"drawn": 0})
    assert drawn == [next(trainer.sampler) for _ in range(4)]


def test_a_cpu_keeps_everything_where_it_is(tables: Tables) -> None:
    assert place(tables, torch.device("cpu")) is tables
    latents, table = tables.latents, tables.text.table
    assert tables.size == 4 * (2 * latents.mean.numel() + table.numel())


def test_a_gpu_holds_what_fits_into_the_stated_share(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.device] = []
    monkeypatch.setattr(Tables, "to", lambda self, device: moved.append(device) or self)
    gpu = torch.device("cuda")
    for free, fits in ((tables.size * 10, True), (tables.size * 10 - 10, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 2 * free))
        moved.clear()
        place(tables, gpu)
        assert moved == ([gpu] if fits else [])


def test_the_next_step_is_prepared_ahead_once_and_in_order(
    sd: StableDiffusion, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with the copies left out."""
    monkeypatch.setattr(Draws, "pinned", lambda self: self)
    monkeypatch.setattr(Batch, "pinned", lambda self: self)
    monkeypatch.setattr(placement.Supply, "_on_device", lambda self, prepared: prepared)
    asked: list[int] = []

    def drawn(step: int) -> Draws:
        asked.append(step)
        generator = torch.Generator().manual_seed(step)
        return draw([step % 8], tables.latents, tables.text, sd.alphas_cumprod, Recipe().train, generator)

    supply = Supply(tables, torch.device("cuda"), drawn)
    taken = [supply.take(step) for step in (1, 2, 3, 7, 8)]
    assert supply._ahead is not None
    supply._ahead[1].result()
    assert asked == [1, 2, 3, 4, 7, 8, 9]
    wanted = [drawn(step).look_up(tables.latents, tables.text) for step in (1, 2, 3, 7, 8)]
    assert all(isinstance(one, Batch) and same(one, other) for one, other in zip(taken, wanted))


@on_gpu
@pytest.mark.parametrize("room", [True, False])
def test_a_gpu_gets_the_batches_of_the_cpu(
    sd: StableDiffusion, tables: Tables, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_SHARE_OF_FREE_MEMORY", 0.1 if room else 0.0)
    gpu = torch.device("cuda")

    def drawn(step: int) -> Draws:
        generator = torch.Generator().manual_seed(step)
        return draw([step, 0], tables.latents, tables.text, sd.alphas_cumprod, Recipe().train, generator)

    placed = place(tables, gpu)
    assert placed.device.type == ("cuda" if room else "cpu")
    supply = Supply(placed, gpu, drawn)
    for step in (1, 2, 3):
        wanted, got = drawn(step).look_up(tables.latents, tables.text), supply.take(step)
        assert all(tensor.device.type == "cuda" for tensor in got._tensors().values())
        torch.testing.assert_close(got.latents.cpu(), wanted.latents)
        assert same(replace(got, latents=wanted.latents), wanted)


@on_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("room", [True, False])
def test_steps_on_a_gpu_never_wait(
    sd: StableDiffusion,
    make_recipe: Callable[..., Recipe],
    precision: str,
    room: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "_SHARE_OF_FREE_MEMORY", 0.1 if room else 0.0)
    settings = {"device": "cuda", "precision": precision, "accumulation": 2}
    base = load_base(sd.source, device="cuda", dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    trainer = Trainer(base, make_recipe(train=settings, lora={"dropout": 0.1}), latent_set(), text_set(base))
    trainer.advance()  # memory is taken, kernels are chosen
    torch.cuda.synchronize()
    before = trainer.lora()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = torch.zeros(2, device="cuda")
        for _ in range(5):
            sums += trainer.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.isfinite().all()
    after = trainer.lora()
    assert any(not torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())


def test_captions_of_the_step_are_those_of_its_pictures(sd: StableDiffusion, tables: Tables) -> None:
    settings = Recipe.model_validate({"train": {"caption_dropout": 0.0}}).train
    drawn = draw([0, 1, 2, 5], tables.latents, tables.text, sd.alphas_cumprod, settings, torch.Generator())
    names = list(tables.text.captions)
    assert [names[row] for row in drawn.row.tolist()] == [CAPTIONS[i % 3] for i in (0, 1, 2, 5)]
