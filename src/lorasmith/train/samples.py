"""Sample pictures at fixed prompts and seeds, for the base and at every checkpoint."""

from __future__ import annotations

import io
import json
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
from lorasmith.train.ranks import ALONE, Ranks

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
    for example in (e for e in examples if not e.preserved):
        captions.setdefault(example.label, Counter())[example.caption] += 1
    usual = {label: min(counts, key=lambda text: (-counts[text], text)) for label, counts in captions.items()}
    return [usual[label] for label in sorted(usual)][:_CLASSES]


def draw_samples(
    sd: StableDiffusion, requests: Sequence[Request], folder: Path, ranks: Ranks = ALONE
) -> Generator[Event, None, tuple[Path, ...]]:
    """Draw the requested pictures with the adapter as it is now, as 00.png, 01.png, ... in ``folder``.

    Each of ``ranks`` draws its share; the first writes all of them.

    Raises:
        OutputError: the disk refuses.
    """
    if ranks.first:
        files.new_folder(folder)
    paths = [folder / f"{number:02d}.png" for number in range(len(requests))]
    own, drawn = range(ranks.rank, len(requests), ranks.world), dict[int, bytes]()
    yield Progress("samples", 0, len(own))
    if own:
        with on_device(sd, sd.vae, sd.text_encoder):
            for done, (index, pixels) in enumerate(sample(sd, [requests[i] for i in own]), start=1):
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                drawn[own[index]] = png.getvalue()
                if ranks.first:
                    files.write_bytes(paths[own[index]], png.getvalue())
                yield Progress("samples", done, len(own))
    if not ranks.alone:
        _write_the_others(ranks, drawn, paths)
    return tuple(paths)


def _write_the_others(ranks: Ranks, drawn: dict[int, bytes], paths: Sequence[Path]) -> None:
    """Let the first write what the others have drawn, who may share no disk with it."""
    own = sorted(drawn)
    sizes = [len(drawn[i]) for i in own]
    lists = [json.loads(data) for data in ranks.gather(json.dumps([own, sizes]).encode())]
    pictures = ranks.gather(b"".join(drawn[i] for i in own))
    for (indices, lengths), data in list(zip(lists, pictures, strict=True))[1:]:
        place = 0
        for index, length in zip(indices, lengths, strict=True):
            files.write_bytes(paths[index], data[place : place + length])
            place += length


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
