from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorasmith.errors import RecipeError
from lorasmith.generate.sample import Request, sample
from lorasmith.generate.samplers import SAMPLERS, make_scheduler
from lorasmith.model.lora import LoraConfig, attach, detach
from lorasmith.model.stable_diffusion import StableDiffusion, load_base


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock(pipeline: Any, sd: StableDiffusion, requests: list[Request]) -> np.ndarray:
    """Return what diffusers' own pipeline draws, (N, H, W, 3) uint8."""
    first = requests[0]
    pipeline.scheduler = make_scheduler(sd, first.sampler)
    pictures = pipeline(
        [r.prompt for r in requests],
        negative_prompt=[r.negative for r in requests],
        num_inference_steps=first.steps,
        guidance_scale=first.guidance,
        width=first.width,
        height=first.height,
        generator=[torch.Generator().manual_seed(r.seed) for r in requests],
        output_type="np",
    ).images
    return (pictures * 255).round().astype(np.uint8)


def draw(sd: StableDiffusion, requests: list[Request], batch: int = 4) -> np.ndarray:
    made = dict(sample(sd, requests, batch=batch))
    return np.stack([made[i] for i in range(len(requests))])


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("name", SAMPLERS)
def test_equals_the_stock_pipeline(pipeline: Any, sd: StableDiffusion, name: str) -> None:
    requests = [
        Request("an axe", "pink", seed=3, steps=6, sampler=name),
        Request("a whip with blossom", seed=4, steps=6, sampler=name),
    ]
    assert difference(draw(sd, requests), stock(pipeline, sd, requests)) <= 1


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_and_size_equal_the_stock_pipeline(pipeline: Any, sd: StableDiffusion, guidance: float) -> None:
    requests = [Request("an axe", "pink", seed=5, steps=4, guidance=guidance, width=48, height=24)]
    made = draw(sd, requests)
    assert made.shape == (1, 24, 48, 3)
    assert difference(made, stock(pipeline, sd, requests)) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_batch_changes_no_picture(sd: StableDiffusion, name: str) -> None:
    requests = [Request(f"an axe {i % 3}", seed=i, steps=8, sampler=name) for i in range(5)]
    alone, together = draw(sd, requests, batch=1), draw(sd, requests, batch=3)
    assert difference(alone, together) <= 1
    assert difference(alone[0], alone[3]) > 10  # the seed alone differs


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_enough(sd: StableDiffusion, name: str) -> None:
    assert draw(sd, [Request("an axe", steps=1, sampler=name)]).shape == (1, 32, 32, 3)


def test_requests_of_many_kinds_are_each_drawn_once(sd: StableDiffusion) -> None:
    requests = [Request("a", steps=2 + i % 2, width=32 + 4 * (i % 3), height=32, seed=i) for i in range(9)]
    steps: list[tuple[int, int]] = []
    made = list(sample(sd, requests, batch=2, on_step=lambda done, total: steps.append((done, total))))
    assert sorted(i for i, _ in made) == list(range(9))
    assert all(picture.shape == (32, requests[i].width, 3) for i, picture in made)
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))
    assert len({total for _, total in steps}) == 1


def test_each_text_is_encoded_once(sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    own = StableDiffusion.encode_text
    monkeypatch.setattr(StableDiffusion, "encode_text", lambda self, texts: seen.extend(texts) or own(self, texts))
    draw(sd, [Request(p, "no", seed=i, steps=1) for i, p in enumerate("aabbab")], batch=2)
    assert sorted(seen) == ["a", "b", "no"]


def test_training_goes_on_as_it_was(tiny_base: Path) -> None:
    sd = load_base(str(tiny_base))
    attach(sd, LoraConfig(rank=2, alpha=2, dropout=0.5))
    sd.unet.train()
    state = torch.get_rng_state()
    pictures = [draw(sd, [Request("an axe", steps=2)]) for _ in range(2)]
    assert (pictures[0] == pictures[1]).all()  # no dropout
    assert sd.unet.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    detach(sd)


def test_all_problems_are_told_at_once(sd: StableDiffusion) -> None:
    with pytest.raises(RecipeError) as caught:
        list(sample(sd, [Request("a", steps=0), Request("a", width=33), Request("a", seed=-1, guidance=float("nan"))]))
    assert all(word in caught.value.what for word in ("0 steps", "33", "-1", "nan"))
    with pytest.raises(RecipeError, match="euler-a"):
        list(sample(sd, [Request("a", sampler="euler_a")]))


def test_bfloat16_draws_nearly_the_same(tiny_base: Path, sd: StableDiffusion) -> None:
    requests = [Request("an axe", seed=1, steps=4, guidance=3)]
    half = load_base(str(tiny_base), dtype=torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32
    assert np.abs(draw(sd, requests).astype(int) - draw(half, requests)).mean() < 4
