"""Draw pictures in memory: batched classifier-free guidance (Ho and Salimans 2022)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorasmith.errors import DeviceError, RecipeError
from lorasmith.generate.samplers import SAMPLERS, make_scheduler, sampler
from lorasmith.model.stable_diffusion import StableDiffusion

Picture = NDArray[np.uint8]
_MOST_PIXELS = 4096**2  # far beyond what any base draws well; more would only end when the memory does


@dataclass(frozen=True)
class Request:
    """One picture to draw.

    Attributes:
        prompt, negative: what it shall show, and what not.
        seed: of its noise, 0 to 2**63 - 1.
        steps: denoising steps.
        guidance: how much the prompt is followed over ``negative``; at 1 or less ``negative`` is ignored, and a
            picture costs half.
        sampler: a name of ``samplers.SAMPLERS``.
        width, height: in pixels; None is the base's own size.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 25
    guidance: float = 7.5
    sampler: str = "dpm++2m"
    width: int | None = None
    height: int | None = None

    def size(self, sd: StableDiffusion) -> tuple[int, int]:
        """Return (width, height) in pixels with this base."""
        return self.width or sd.size, self.height or sd.size


def sample(
    sd: StableDiffusion,
    requests: Sequence[Request],
    *,
    batch: int = 4,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Picture]]:
    """Draw the pictures of ``requests``.

    Requests with the same steps, guidance, sampler and size share batches, whatever their prompts. Each picture's
    noise, that of a stochastic sampler too, comes from a CPU generator with its own seed, so that neither the batch
    nor the device chooses it; in float32 the batch size changes no picture by more than 1 of 255. (In 16-bit
    arithmetic, matrix products of different sizes may round differently.) Layers of an attached LoRA take part; its
    dropout does not.

    Args:
        batch: pictures at once. The UNet sees twice as many where guidance > 1; its activations are the peak of
            memory, since pictures are decoded singly.
        on_step: called as (done, in all) after each evaluation of the UNet, over all batches.

    Yields:
        (index of the request, picture (H, W, 3) uint8), each index once, batch by batch.

    Raises:
        RecipeError: a request that cannot be drawn; all problems are told before anything is drawn.
        DeviceError: the device's memory is not enough.
        ModelError: the base makes numbers that are no picture.
    """
    check_requests(sd, requests)
    batches = [(indices, _scheduler(sd, requests[indices[0]])) for indices in _batches(sd, requests, batch)]
    total = sum(len(scheduler.timesteps) for _, scheduler in batches)
    done = 0

    def step_done() -> None:
        nonlocal done
        done += 1
        if on_step:
            on_step(done, total)

    embed = cache(lambda text: sd.encode_text([text]))  # singly, so that a text's neighbours do not touch it
    for indices, scheduler in batches:
        with _sampling(sd), _memory_explained(len(indices)):
            latents = _denoise(sd, [requests[i] for i in indices], scheduler, embed, step_done)
            pictures = sd.decode_latents(latents).numpy()
        yield from zip(indices, pictures)


def _denoise(
    sd: StableDiffusion,
    requests: Sequence[Request],
    scheduler: Any,
    embed: Callable[[str], Tensor],
    step_done: Callable[[], None],
) -> Tensor:
    """Return the latents (N, C, h, w) of requests that differ in prompts and seeds alone. They stay in float32."""
    guidance, (width, height) = requests[0].guidance, requests[0].size(sd)
    shape = (1, sd.latent_channels, height // sd.vae_factor, width // sd.vae_factor)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    x: Tensor = noise.to(sd.device) * scheduler.init_noise_sigma
    texts = [request.prompt for request in requests]
    if guidance > 1:
        texts = [request.negative for request in requests] + texts
    text = torch.cat([embed(t) for t in texts])
    noisy = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t).to(sd.dtype)
        seen = torch.cat([seen, seen]) if guidance > 1 else seen
        out = sd.unet(seen, t, encoder_hidden_states=text, return_dict=False)[0].float()
        if guidance > 1:
            without, towards = out.chunk(2)
            out = without + guidance * (towards - without)
        x = scheduler.step(out, t, x, **noisy, return_dict=False)[0]
        step_done()
    return x


def check_requests(sd: StableDiffusion, requests: Sequence[Request]) -> None:
    """Do nothing if every request can be drawn with this base.

    Raises:
        RecipeError: naming every problem.
    """
    longest = len(sd.alphas_cumprod)
    problems: dict[str, None] = {}  # an ordered set
    for request in requests:
        if request.sampler not in SAMPLERS:
            sampler(request.sampler)
        if not 1 <= request.steps <= longest:
            problems[f"{request.steps} steps are not from 1 to {longest}"] = None
        if not 0 <= request.guidance <= 100:
            problems[f"a guidance of {request.guidance} is not from 0 to 100"] = None
        if not 0 <= request.seed < 2**63:
            problems[f"the seed {request.seed} is not from 0 to 2**63 - 1"] = None
        width, height = request.size(sd)
        if width * height > _MOST_PIXELS:
            problems[f"{width} x {height} pixels are more than {_MOST_PIXELS:,}"] = None
        for side in (width, height):
            if side <= 0 or side % sd.vae_factor:
                problems[f"a side of {side} pixels is not a multiple of {sd.vae_factor}"] = None
    if problems:
        raise RecipeError(f"The pictures cannot be drawn: {'; '.join(problems)}.", fix="Change these values.")


def _batches(sd: StableDiffusion, requests: Sequence[Request], batch: int) -> Iterator[list[int]]:
    """Yield the indices of requests that can share a batch, at most ``batch`` each, in the order of the requests."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, r in enumerate(requests):
        groups.setdefault((r.steps, r.guidance, r.sampler, r.size(sd)), []).append(i)
    for indices in groups.values():
        for start in range(0, len(indices), max(batch, 1)):
            yield indices[start : start + max(batch, 1)]


def _scheduler(sd: StableDiffusion, request: Request) -> Any:
    scheduler = make_scheduler(sd, request.sampler)
    scheduler.set_timesteps(request.steps, device=sd.device)
    return scheduler


@contextmanager
def _sampling(sd: StableDiffusion) -> Iterator[None]:
    """No gradients and no dropout within; a training that goes on around it finds its modes as they were."""
    modes = [(part, part.training) for part in (sd.unet, sd.text_encoder)]
    for part, _ in modes:
        part.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.train(mode)


@contextmanager
def _memory_explained(batch: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"The GPU's memory is not enough for {batch} pictures at once.",
            where=str(error).splitlines()[0],
            fix="Choose a smaller batch or size, or close other programs that use the GPU."
            if batch > 1
            else "Choose a smaller size, or close other programs that use the GPU.",
        ) from error
