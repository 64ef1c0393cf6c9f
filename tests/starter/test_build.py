"""The build: its job can be stopped and goes on; what it writes is what stock libraries load."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lorasmith.starter.build.job import Job, Site, cosine, fingerprint
from lorasmith.starter.build.judge import _patches, _through
from lorasmith.starter.build.measure import prompts, psnr
from lorasmith.starter.build.pool import changed, renders
from lorasmith.starter.build.tokenizer import write_tokenizer
from lorasmith.starter.build.unet import Denoiser, encode, wordings
from lorasmith.starter.build.vae import (
    LATENT_CHANNELS,
    SCALING,
    SIGMA,
    linear_code,
    make_vae,
    sigma_of,
    strayed,
    train_vae,
)
from lorasmith.starter.build.write import LIMIT, write_starter
from lorasmith.starter.renderer import COLOURS, SEEN_KINDS
from lorasmith.starter.shapes import KINDS


def _loss(model: nn.Module, seen: list[int]):  # type: ignore[no-untyped-def]
    def loss(fraction: float, step: int) -> tuple[Tensor, int]:
        seen.append(step)
        torch.manual_seed(step)
        return model(torch.randn(8, 4)).square().mean(), 8

    return loss


def test_a_job_goes_on_where_it_was(tmp_path: Path) -> None:
    def job() -> Job:
        torch.manual_seed(0)
        return Job("small", nn.Linear(4, 4), tmp_path, minutes=0.002, learning_rate=1e-2)

    first, steps = job(), []
    said: list[str] = []
    first.run(_loss(first.model, steps), said.append)
    assert first.finished
    assert steps == list(range(len(steps)))
    again = job()
    assert (again.steps, again.samples, again.finished) == (len(steps), 8 * len(steps), True)
    for a, b in zip(first.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    for key, value in first.average.items():
        assert torch.equal(value, again.average[key])


def test_a_job_stops_at_its_deadline(tmp_path: Path) -> None:
    job = Job("small", nn.Linear(4, 4), tmp_path, minutes=60, deadline=0.0)
    job.run(_loss(job.model, []), print)
    assert job.idle
    assert not job.finished
    assert job.steps == 0


def test_a_fingerprint_changes_with_any_weight() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        other.bias[3] += 1e-6
    assert fingerprint(one) != fingerprint(other)


def test_cosine_rises_then_falls() -> None:
    rates = [cosine(f, 1.0) for f in np.linspace(0, 1, 101)]
    assert rates[0] < 0.05
    assert max(rates) > 0.99
    assert rates[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))


def test_pools_are_drawn_once(tmp_path: Path) -> None:
    a, rows = renders(tmp_path, "few", 100, 5, size=32, kinds=SEEN_KINDS, workers=1)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    b, again = renders(tmp_path, "few", 100, 5, size=32, kinds=SEEN_KINDS, workers=1)
    np.testing.assert_array_equal(a, b)
    assert rows == again
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert all(row["kind"] in text for row in rows for text in wordings(row, 1))


def test_the_tokenizer_is_clips_own(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    assert write_tokenizer(tmp_path / "whole", 49152 - 256 - 2, 77) == 49408
    whole = CLIPTokenizer.from_pretrained(tmp_path / "whole")
    assert whole("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    size = write_tokenizer(tmp_path / "small")
    small = CLIPTokenizer.from_pretrained(tmp_path / "small")
    text = "an axe with pink peach blossom patterns, naïve 42"
    ids = small(text).input_ids
    assert max(ids) < size
    assert small.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_the_linear_code_is_quarters_and_finer_differences() -> None:
    flat = torch.tensor([0.5, -0.25, 1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 24)
    code = linear_code(flat)
    assert code.shape == (1, LATENT_CHANNELS, 2, 3)
    torch.testing.assert_close(code[0, :, 0, 0], torch.tensor([0.5] * 4 + [-0.25] * 4 + [1.0] * 4 + [0.0] * 4))
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    quarters = F.avg_pool2d(x, 4)
    torch.testing.assert_close(linear_code(x)[0, :12, 0, 0], quarters.flatten())
    assert linear_code(x)[0, 12:].abs().min() > 1e-4


def small_vae() -> AutoencoderKL:
    torch.manual_seed(3)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=5,
        scaling_factor=2.0,
    ).eval()


def test_pictures_are_encoded_as_the_vae_encodes_them_and_their_mirror_images() -> None:
    vae = small_vae()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = torch.stack([vae.encode(each).latent_dist.mean for each in (x, x.flip(3))], 1)
    torch.testing.assert_close(encode(vae, pictures).float(), expected, rtol=0, atol=0.03)


def trained_vae(folder: Path, start: Path | None, steps: int) -> tuple[AutoencoderKL, Tensor]:
    """Return a VAE trained on two coarse pictures for so many steps, by a clock of its own, and those pictures."""
    blocks = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures, ticks = F.interpolate(blocks, scale_factor=4), itertools.count()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lorasmith.starter.build.vae._batches", lambda _: lambda whole, step: pictures)
        patched.setattr("lorasmith.starter.build.job.time.perf_counter", lambda: float(next(ticks)))
        job = train_vae(Site(folder, torch.device("cpu"), 1, lambda _: None, start), steps / 60, math.inf)
    assert (job.finished, job.steps) == (True, steps)
    assert isinstance(job.model, AutoencoderKL)
    return job.model, pictures


def test_a_build_goes_on_with_the_vae_it_starts_from(tmp_path: Path) -> None:
    small_vae().save_pretrained(tmp_path / "start" / "starter" / "vae")
    before = small_vae().state_dict()
    vae, pictures = trained_vae(tmp_path, tmp_path / "start", steps=2)
    moved = {name.partition(".")[0] for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"encoder", "decoder", "quant_conv", "post_quant_conv"}
    assert (vae.config.latent_channels, sigma_of(vae)) == (5, SIGMA / 2)
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist
    torch.testing.assert_close(latents.std, torch.full_like(latents.std, sigma_of(vae)))


def test_an_encoder_from_nothing_learns_the_linear_code_first(tmp_path: Path) -> None:
    def distance(vae: AutoencoderKL, x: Tensor) -> float:
        with torch.no_grad():
            return float((vae.encode(x).latent_dist.mean - linear_code(x)).square().mean())

    vae, pictures = trained_vae(tmp_path, None, steps=30)
    assert distance(vae, pictures) < 0.5 * distance(make_vae(), pictures)


def test_a_quiet_channel_may_stray_further_than_a_loud_one_and_none_may_shout() -> None:
    before = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1, 0.01]).view(
        1, 3, 1, 1
    )
    assert strayed(before, before) < 0.02  # the first one's power is not quite 1

    def after(channel: int, factor: float) -> float:
        now = before.clone()
        now[:, channel] = -factor * now[:, channel]
        return float(strayed(now, before) - strayed(before, before))

    assert after(0, 0.9) > 500 * after(1, 0.9) > 250_000 * after(2, 0.9) > 0
    assert after(1, 20.0) > 0.9  # power 4, where 1 is allowed


def test_what_was_changed_is_kept(tmp_path: Path) -> None:
    pictures, numbers = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2), []

    def change(part: np.ndarray, number: int) -> np.ndarray:
        numbers.append(number)
        return part + 1

    for _ in range(2):
        assert np.array_equal(changed(tmp_path / "more", pictures, change, at_once=2), pictures + 1)
    assert numbers == [0, 2, 4]


def test_the_judge_sees_what_the_vae_makes_of_pictures() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 128, 128, 4), np.uint8)
    pictures[..., 3] = 255
    coded = _through(small_vae(), pictures, 7)
    assert (coded.shape, coded.dtype) == ((2, 64, 64, 4), np.uint8)
    assert (coded[..., 3] == 255).all()
    assert np.array_equal(coded, _through(small_vae(), pictures, 7))
    assert not np.array_equal(coded, _through(small_vae(), pictures, 8))


def test_patches_of_colour_lie_on_the_item_alone() -> None:
    torch.manual_seed(0)
    coverage = torch.zeros(64, 1, 32, 32)
    coverage[:, :, 8:20, 4:16] = 1
    found = _patches(coverage)
    assert found.shape == (64, 3, 32, 32)
    assert not found[(coverage == 0).expand_as(found)].any()
    strength = found[:, :, 8:20, 4:16].std((1, 2, 3))
    assert strength.max() > 0.1
    assert (strength < 0.05).float().mean() > 0.25


def test_psnr() -> None:
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[1] = 255
    assert psnr(a, b)[1] == pytest.approx(0.0)
    assert psnr(a, b)[0] > 100


def test_prompts_ask_for_every_kind_equally_and_say_the_colour() -> None:
    asked = prompts(SEEN_KINDS, 40, seed=1)
    assert [k for _, k, _ in asked].count("sword") == 4
    assert all(f"{colour} {kind}" in prompt for prompt, kind, colour in asked)
    assert {c for _, _, c in asked} <= set(COLOURS)
    assert set(SEEN_KINDS) < set(KINDS)


def test_what_is_written_loads_in_stock_diffusers(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    vocabulary = write_tokenizer(tmp_path / "tokenizer")
    vae, denoiser = make_vae(), Denoiser(vocabulary)
    write_starter(tmp_path / "starter", vae, denoiser)
    sizes = [path.stat().st_size for path in (tmp_path / "starter").rglob("*") if path.is_file()]
    assert max(sizes) <= LIMIT
    assert sum(sizes) <= 30e6
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "starter")
    assert pipeline.vae.config.scaling_factor == SCALING
    schedule = json.loads((tmp_path / "starter" / "scheduler" / "scheduler_config.json").read_text())
    assert (schedule["beta_start"], schedule["beta_end"], schedule["beta_schedule"]) == (
        0.00085,
        0.012,
        "scaled_linear",
    )
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline("a red axe", num_inference_steps=2, output_type="np").images
    assert pictures.shape == (1, 128, 128, 3)
    for written, again in ((vae, make_vae(tmp_path)), (denoiser, Denoiser(vocabulary, tmp_path))):
        for (name, a), (_, b) in zip(written.named_parameters(), again.named_parameters(), strict=True):
            assert torch.equal(a.half().float(), b), f"a build that starts from these models changes {name}"
