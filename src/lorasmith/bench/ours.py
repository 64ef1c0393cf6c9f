"""lorasmith's own way, on random data."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from lorasmith.bench.job import Job, Measured
from lorasmith.bench.measure import Turns, flops, matrix_rate, name_of, peak_mib, timed, warm_up
from lorasmith.dataset.read import Example
from lorasmith.errors import RecipeError
from lorasmith.generate.sample import Request, check_requests, sample
from lorasmith.model.lora import Lora, LoraConfig, attach, detach, fuse, lora_state
from lorasmith.model.stable_diffusion import StableDiffusion, load_base, pick_device, pick_dtype
from lorasmith.recipe.schema import Recipe
from lorasmith.train.encode import LatentSet, TextSet
from lorasmith.train.trainer import Trainer

PROMPT = "a photo of an axe with pink blossom patterns"
_PICTURES = 16


def train(job: Job, turns: Turns) -> Measured:
    """Train as ``lorasmith train`` does: pictures and captions encoded before, of which random ones stand in here."""
    sd, size = _load(job)
    if size % sd.vae_factor:
        raise RecipeError(f"{size} px is not a multiple of {sd.vae_factor}.", where="--size", fix="Choose another.")
    count = flops(sd, job, size)
    trainer = Trainer(sd, _recipe(job), _random_latents(sd, size), _texts(sd))
    sd.vae.to("cpu")
    sd.text_encoder.to("cpu")

    def step(number: int) -> None:
        trainer.advance()
        turns.tell(number + 1, job.steps)

    done, seconds, rate = timed(
        turns, sd.device, step, trainer.advance, warm_up(job), partial(matrix_rate, sd.device, sd.dtype)
    )
    return _result(sd.device, sd.dtype, done * job.batch, seconds, count, rate)


@torch.no_grad()
def generate(job: Job, turns: Turns) -> Measured:
    """Draw batches as ``lorasmith generate`` does: together, with the LoRA in the weights."""
    sd, size = _load(job)
    requests = [Request(PROMPT, seed=seed, steps=job.steps, width=size, height=size) for seed in range(job.batch)]
    check_requests(sd, requests)
    count = flops(sd, job, size)
    fuse(sd, random_lora(sd, job.rank))
    short = [Request(PROMPT, steps=1, width=size, height=size)] * job.batch

    def draw(_: int) -> None:
        list(sample(sd, requests, batch=job.batch, on_step=turns.tell))

    def warm() -> None:
        list(sample(sd, short, batch=job.batch))

    done, seconds, rate = timed(turns, sd.device, draw, warm, yardstick=partial(matrix_rate, sd.device, sd.dtype))
    return _result(sd.device, sd.dtype, done * job.batch, seconds, count, rate)


def load(job: Job, turns: Turns) -> Measured:
    """Load the base as every command does, ``steps`` times over."""
    device = pick_device(job.device)
    dtype = pick_dtype(job.precision, device)
    sizes = []

    def once(number: int) -> None:
        sd = load_base(job.base, device=device, dtype=dtype)
        sizes.append(weights_gb(sd.unet, sd.vae, sd.text_encoder))
        turns.tell(number + 1, job.steps)

    # The first imports the libraries, and brings the files into memory.
    done, seconds, _ = timed(turns, device, once, lambda: load_base(job.base, device=device, dtype=dtype))
    return _result(device, dtype, done * sizes[0], seconds)


def random_lora(sd: StableDiffusion, rank: int) -> Lora:
    """Return a LoRA on the UNet's attention that changes every weight a little; ``sd`` stays as it is."""
    attach(sd, LoraConfig(rank=rank, alpha=float(rank)))
    lora = lora_state(sd)
    detach(sd)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in lora.tensors.items():
        if name.endswith("lora_B.weight"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1e-3)
    return lora


def weights_gb(*parts: torch.nn.Module) -> float:
    """Return the 10**9 bytes of the parts' weights as they lie in memory."""
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters()) / 1e9


def _load(job: Job) -> tuple[StableDiffusion, int]:
    device = pick_device(job.device)
    sd = load_base(job.base, device=device, dtype=pick_dtype(job.precision, device))
    return sd, job.size or sd.size


def _recipe(job: Job) -> Recipe:
    train = {"steps": warm_up(job) + job.steps, "batch": job.batch, "device": job.device, "precision": job.precision}
    return Recipe.model_validate({"base": job.base, "lora": {"rank": job.rank}, "train": train})


def _random_latents(sd: StableDiffusion, size: int) -> LatentSet:
    examples = [Example(Path(f"{i}.png"), PROMPT, "axe", size, size, f"{i:064}") for i in range(_PICTURES)]
    shape = (_PICTURES, 1, sd.latent_channels, size // sd.vae_factor, size // sd.vae_factor)
    mean = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return LatentSet(tuple(examples), mean, torch.full(shape, 0.1))


def _texts(sd: StableDiffusion) -> TextSet:
    with torch.no_grad():
        return TextSet(sd.encode_text(["", PROMPT]).cpu(), {"": 0, PROMPT: 1})


def _result(
    device: torch.device, dtype: torch.dtype, done: float, seconds: float, count: float = 0.0, rate: float = 0.0
) -> Measured:
    return Measured("lorasmith", str(device), name_of(dtype), done, seconds, count, rate, peak_mib(device))
