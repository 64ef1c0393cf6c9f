from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lorasmith.model.lora import LoraConfig, attach, detach, set_lora_weights
from lorasmith.model.stable_diffusion import StableDiffusion, load_base
from lorasmith.recipe.schema import Recipe, TrainSection
from lorasmith.train.encode import tokenize_captions
from lorasmith.train.noise import add_noise
from lorasmith.train.step import Batch, draw, errors, seed_of, train_step
from lorasmith.train.trainer import Trainer

from .helpers import CAPTIONS, latent_set, text_set


def drawn(sd: StableDiffusion, seed: int = 0, count: int = 8, **settings: Any) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    section = TrainSection(**{"caption_dropout": 0.0, **settings})
    latents, text = latent_set(max(count, 8)), text_set(sd)
    return draw(range(count), latents, text, sd.alphas_cumprod, section, generator).look_up(latents, text)


def scaler(enabled: bool = False) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=enabled)


def awake(sd: StableDiffusion, **config: Any) -> list[torch.nn.Parameter]:
    """Attach a LoRA whose B is not zero, so that every weight has a gradient."""
    parameters = attach(sd, LoraConfig(rank=4, alpha=2.0, **config), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return parameters


def sgd_change(sd: StableDiffusion, drawn: Batch, parameters: list[torch.nn.Parameter], **settings: Any) -> Tensor:
    """Return what one step of plain gradient descent with rate 1 subtracts: the gradient, after clipping."""
    before = [p.detach().clone() for p in parameters]
    train_step(sd, drawn, TrainSection(**settings), parameters, torch.optim.SGD(parameters, lr=1.0), scaler())
    change = torch.cat([(old - new.detach()).flatten() for old, new in zip(before, parameters)])
    for old, new in zip(before, parameters):
        new.data = old
    return change


def test_each_draw_samples_anew_around_the_cached_mean(sd: StableDiffusion) -> None:
    one, two, again = drawn(sd, 0), drawn(sd, 1), drawn(sd, 0)
    assert all(torch.equal(tensor, again._tensors()[name]) for name, tensor in one._tensors().items())
    assert not torch.equal(one.latents, two.latents) and not torch.equal(one.noise, two.noise)
    pictures = one.latents.mean(dim=(1, 2, 3))
    views = ((pictures - torch.arange(8)) * 10).round()
    assert set(views.tolist()) <= {0.0, 1.0}
    deviation = (one.latents - (torch.arange(8) + views / 10).view(-1, 1, 1, 1)).std()
    assert deviation == pytest.approx(0.01, rel=0.05)
    assert one.noise.std() == pytest.approx(1.0, rel=0.05)


def test_every_view_is_drawn(sd: StableDiffusion) -> None:
    seen = {round(float(value) * 10) % 10 for seed in range(4) for value in drawn(sd, seed).latents.mean(dim=(1, 2, 3))}
    assert seen == {0, 1}


def test_timesteps_are_uniform_and_cover_the_schedule_evenly(sd: StableDiffusion) -> None:
    batches = [drawn(sd, seed).timesteps for seed in range(400)]
    for timesteps in batches:
        assert sorted((timesteps * 8 // 1000).tolist()) == list(range(8))  # one in each eighth
    single = torch.cat([timesteps[:1] for timesteps in batches]).float()
    assert single.min() < 25 and single.max() > 975
    assert single.mean() == pytest.approx(500, abs=4 * 289 / 20)  # four standard errors


def test_the_schedule_and_text_of_each_picture(sd: StableDiffusion) -> None:
    batch, text = drawn(sd), text_set(sd)
    assert torch.equal(batch.abar, sd.alphas_cumprod[batch.timesteps])
    assert torch.equal(batch.text, text.table[text.rows([CAPTIONS[i % 3] for i in range(8)])])


def test_caption_dropout_gives_the_empty_caption_that_often(sd: StableDiffusion) -> None:
    empty = text_set(sd).table[0]
    batch = drawn(sd, count=600, caption_dropout=0.3)
    share = float((batch.text == empty).flatten(1).all(dim=1).float().mean())
    assert share == pytest.approx(0.3, abs=0.08)
    assert (drawn(sd, caption_dropout=1.0).text == empty).all()


def test_noise_offset_adds_a_constant_to_each_channel(sd: StableDiffusion) -> None:
    offset = (drawn(sd, count=200, noise_offset=0.5).noise - drawn(sd, count=200).noise).flatten(2)
    assert offset.std(dim=2).max() < 1e-6
    assert offset.mean(dim=2).std() == pytest.approx(0.5, rel=0.1)


def test_accumulation_gives_the_gradient_of_one_big_batch(sd: StableDiffusion) -> None:
    parameters, batch = awake(sd), drawn(sd)
    whole = sgd_change(sd, batch, parameters, batch=8, max_grad_norm=0.0)
    assert whole.norm() > 1e-3
    for size in (1, 3, 4):  # 3 leaves a last part of two, which must weigh less
        torch.testing.assert_close(sgd_change(sd, batch, parameters, batch=size, max_grad_norm=0.0), whole)


def preserving(sd: StableDiffusion, which: set[int], **settings: Any) -> Batch:
    """Return the batch of eight pictures, of which those are to be preserved."""
    latents, text = latent_set(), text_set(sd)
    marked = tuple(replace(e, preserved=i in which) for i, e in enumerate(latents.examples))
    generator = torch.Generator().manual_seed(0)
    section = TrainSection(**{"caption_dropout": 0.0, **settings})
    draws = draw(range(8), replace(latents, examples=marked), text, sd.alphas_cumprod, section, generator)
    return draws.look_up(latents, text)


def test_pictures_to_preserve_come_last_and_parts_know_theirs(sd: StableDiffusion) -> None:
    batch = preserving(sd, {1, 4, 6})
    assert [round(float(value)) for value in batch.latents.mean(dim=(1, 2, 3))] == [0, 2, 3, 5, 7, 1, 4, 6]
    assert batch.preserved == 3
    for size in (1, 2, 3, 5, 8, 9):
        parts = list(batch.split(size))
        assert torch.equal(torch.cat([part.noise for part in parts]), batch.noise)
        at = 0
        for part in parts:
            assert part.preserved == sum(i >= 5 for i in range(at, at + len(part)))
            at += len(part)
    assert batch.part(2, 6).part(1, 4).preserved == 1
    assert batch.to(torch.device("cpu")) is batch and drawn(sd).preserved == 0


@pytest.mark.parametrize("text_encoder", [False, True])
def test_what_is_preserved_is_measured_against_the_base(
    sd: StableDiffusion, tiny_base: Path, text_encoder: bool
) -> None:
    batch = preserving(sd, {0, 3})
    if text_encoder:
        batch = replace(batch, text=tokenize_captions(sd, CAPTIONS).table[torch.arange(8) % 4])
    own, base = sd, load_base(str(tiny_base))
    attach(own, LoraConfig(rank=4, alpha=2.0, text_encoder=text_encoder), seed=1)
    found = errors(own, batch)
    assert found[6:].max() < 1e-10  # a LoRA that changes nothing preserves everything
    assert (found[:6] > 0).all()

    detach(own)
    parameters = awake(own, text_encoder=text_encoder)
    plain = errors(own, replace(batch, preserved=0))
    found = errors(own, batch)
    assert torch.equal(found[:6], plain[:6])
    noisy = add_noise(batch.latents, batch.noise, batch.abar)[6:]

    def answer(model: StableDiffusion) -> Tensor:
        text = model.text_encoder(batch.text[6:])[0] if text_encoder else batch.text[6:]
        return model.unet(noisy, batch.timesteps[6:], text).sample

    with torch.no_grad():
        expected = (answer(own) - answer(base)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found[6:].detach(), expected)
    assert all(p.requires_grad for p in parameters)
    torch.autograd.backward(found.sum())
    assert all(p.grad is not None and p.grad.any() for p in parameters)


def test_the_weight_of_what_is_preserved(sd: StableDiffusion) -> None:
    parameters, batch = awake(sd), preserving(sd, {0, 3})
    options = {"max_grad_norm": 0.0, "min_snr_gamma": 0.0}

    def change(weight: float) -> Tensor:
        return sgd_change(sd, batch, parameters, batch=3, preserve_weight=weight, **options)

    none, once, thrice = change(0.0), change(1.0), change(3.0)
    assert (once - none).norm() > 1e-6
    torch.testing.assert_close(thrice - none, 3 * (once - none), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(none, sgd_change(sd, batch.part(0, 6), parameters, batch=6, **options) * 6 / 8)


def test_clipping_bounds_the_step_and_tells_the_norm_before(sd: StableDiffusion) -> None:
    parameters, batch = awake(sd), drawn(sd)
    free = sgd_change(sd, batch, parameters, batch=8, max_grad_norm=0.0)
    limit = float(free.norm()) / 10
    clipped = sgd_change(sd, batch, parameters, batch=4, max_grad_norm=limit)
    torch.testing.assert_close(clipped, free / 10, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(sgd_change(sd, batch, parameters, batch=8, max_grad_norm=1000.0), free)
    settings = TrainSection(batch=8, max_grad_norm=limit)
    figures = train_step(sd, batch, settings, parameters, torch.optim.SGD(parameters, lr=1.0), scaler())
    assert float(figures[1]) == pytest.approx(float(free.norm()), rel=1e-4)


def test_gradient_checkpointing_changes_no_gradient(sd: StableDiffusion) -> None:
    parameters, batch = awake(sd), drawn(sd)
    plain = sgd_change(sd, batch, parameters, batch=8)
    sd.unet.train()
    sd.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(sgd_change(sd, batch, parameters, batch=8), plain)


def test_loss_scaling_changes_nothing_until_it_overflows(sd: StableDiffusion) -> None:
    parameters, batch = awake(sd), drawn(sd)
    before = [p.detach().clone() for p in parameters]

    def step(scale: torch.amp.GradScaler, batch: Batch = batch) -> Tensor:
        optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
        figures = train_step(sd, batch, TrainSection(batch=4), parameters, optimizer, scale)
        after = torch.cat([p.detach().flatten() for p in parameters])
        for old, new in zip(before, parameters):
            new.data = old.clone()
        return torch.cat((figures, after))

    torch.testing.assert_close(step(scaler(enabled=True)), step(scaler()))
    overflowing = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    skipped = step(overflowing, replace(batch, noise=batch.noise * 1e6))
    assert torch.equal(skipped[2:], torch.cat([p.flatten() for p in before]))
    assert not math.isfinite(float(skipped[1])) and math.isfinite(float(skipped[0]))
    assert overflowing.get_scale() == 2.0**119


class Synchronisations(TorchDispatchMode):
    """Counts what would make a GPU wait: reading a number, and shapes that depend on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_step_never_waits_for_the_device(sd: StableDiffusion, text_encoder: bool) -> None:
    parameters, batch = awake(sd, text_encoder=text_encoder), preserving(sd, {2})
    if text_encoder:
        batch = replace(batch, text=tokenize_captions(sd, CAPTIONS).table[torch.arange(8) % 4])
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    with Synchronisations() as seen:
        train_step(sd, batch, TrainSection(batch=4), parameters, optimizer, scaler())
    assert seen.found == []
    with Synchronisations() as seen:
        float(torch.zeros(1))
    assert len(seen.found) == 1  # so it would have been seen


def plain_step(base: Path, sd: StableDiffusion, batch: Batch, lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights after one step written with diffusers and peft alone, as their scripts do."""
    import peft
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.training_utils import compute_snr

    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    unet.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=2.0, target_modules=targets))
    weights = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    for name, parameter in weights.items():
        parameter.data = lora["unet." + name.replace(".default.", ".")].clone()
    schedule = DDPMScheduler.from_pretrained(base / "scheduler")
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    answer = unet(noisy, batch.timesteps, batch.text).sample
    snr = compute_snr(schedule, batch.timesteps)
    weight = torch.stack([snr, torch.full_like(snr, 5.0)], dim=1).min(dim=1)[0] / snr
    loss = torch.nn.functional.mse_loss(answer, batch.noise, reduction="none").mean(dim=(1, 2, 3)) * weight
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=0.01)
    loss.mean().backward()
    torch.nn.utils.clip_grad_norm_(weights.values(), 0.05)
    optimizer.step()
    return {"unet." + name.replace(".default.", "."): p.detach() for name, p in weights.items()}


def test_a_whole_step_equals_one_of_diffusers_and_peft(
    tiny_base: Path, sd: StableDiffusion, make_recipe: Callable[..., Recipe]
) -> None:
    settings = {"learning_rate": 1e-2, "warmup": 0, "batch": 3, "accumulation": 2, "max_grad_norm": 0.05}
    recipe = make_recipe(train=settings)
    latents, text = latent_set(), text_set(sd)
    trainer = Trainer(sd, recipe, latents, text)
    start = trainer.lora()
    generator = torch.Generator().manual_seed(3)
    awakened = {k: torch.randn(t.shape, generator=generator) * 0.1 for k, t in start.tensors.items()}
    for name, tensor in awakened.items():
        start.tensors[name].copy_(tensor)
    set_lora_weights(sd, start)

    indices = Trainer(load_base(str(tiny_base)), recipe, latents, text).sampler.__next__()
    first = torch.Generator().manual_seed(seed_of(recipe.train.seed, "draw", 1))
    batch = draw(indices, latents, text, sd.alphas_cumprod, recipe.train, first).look_up(latents, text)
    wanted = plain_step(tiny_base, sd, batch, awakened)
    trainer.advance()
    got = trainer.lora().tensors
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # AdamW's first step is near the gradient's sign: a rounding error of a tiny gradient may show enlarged.
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)
        assert not torch.equal(got[name], awakened[name])


def test_errors_equal_the_mean_square_of_the_unet_s_answer(sd: StableDiffusion) -> None:
    batch = drawn(sd)
    with torch.no_grad():
        noisy = batch.abar.view(-1, 1, 1, 1).sqrt() * batch.latents
        noisy = noisy + (1 - batch.abar).view(-1, 1, 1, 1).sqrt() * batch.noise
        answers = [sd.unet(x[None], t[None], c[None]).sample[0] for x, t, c in zip(noisy, batch.timesteps, batch.text)]
        wanted = torch.stack([((a - n) ** 2).mean() for a, n in zip(answers, batch.noise)])
        torch.testing.assert_close(errors(sd, batch), wanted)
