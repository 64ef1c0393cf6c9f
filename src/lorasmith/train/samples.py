"""Sample pictures at fixed prompts and seeds, for the base and at every checkpoint."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import nn

from lorasmith import files
from lorasmith.dataset.read import Example
from lorasmith.events import Event, Progress
from lorasmith.generate.sample import Request, sample
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import SamplesSection

_CLASSES = 4  # shown where the recipe names no prompts


def sample_requests(settings: SamplesSection, examples: Sequence[Example], size: int) -> list[Request]:
    """Return what to draw: the recipe's prompts, or the commonest caption of each of the first four classes."""
    return [
        Request(
            prompt=prompt,
            negative=settings.negative,
            seed=settings.seed + number,
            steps=settings.steps,
            guidance=settings.guidance,
            sampler=settings.sampler,
            width=size,
            height=size,
        )
        for prompt in settings.prompts or _usual_captions(examples)
        for number in range(settings.count)
    ]


def _usual_captions(examples: Sequence[Example]) -> list[str]:
    captions: dict[str, Counter[str]] = {}
    for example in examples:
        captions.setdefault(example.label, Counter())[example.caption] += 1
    usual = {label: min(counts, key=lambda text: (-counts[text], text)) for label, counts in captions.items()}
    return [usual[label] for label in sorted(usual)][:_CLASSES]


def draw_samples(
    sd: StableDiffusion, requests: Sequence[Request], folder: Path
) -> Generator[Event, None, tuple[Path, ...]]:
    """Draw the requested pictures with the adapter as it is now, as 00.png, 01.png, ... in ``folder``.

    Raises:
        OutputError: the disk refuses.
    """
    files.new_folder(folder)
    paths = [folder / f"{number:02d}.png" for number in range(len(requests))]
    yield Progress("samples", 0, len(requests))
    with on_device(sd, sd.vae, sd.text_encoder):
        for done, (index, pixels) in enumerate(sample(sd, requests), start=1):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            files.write_bytes(paths[index], png.getvalue())
            yield Progress("samples", done, len(requests))
    return tuple(paths)


@contextmanager
def on_device(sd: StableDiffusion, *parts: nn.Module) -> Iterator[None]:
    """Bring parts that wait in main memory to the model's device for the block."""
    places = [next(part.parameters()).device for part in parts]
    for part in parts:
        part.to(sd.device)
    try:
        yield
    finally:
        for part, place in zip(parts, places, strict=True):
            part.to(place)
