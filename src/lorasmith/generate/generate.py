"""Draw pictures into a folder."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorasmith.errors import RecipeError
from lorasmith.events import Event, Finished, Note, PictureMade, Progress, Warned
from lorasmith.files import require_writable, sha256_file, write_new
from lorasmith.generate.png_text import LoraNote, parameters_text, png_bytes
from lorasmith.generate.sample import Request, check_requests, sample
from lorasmith.model.formats import lora_file, read_lora
from lorasmith.model.lora import Lora, fuse, restore
from lorasmith.model.stable_diffusion import StableDiffusion

PATTERN = "{index:05d}-{seed}"
_NAMES = ("index", "seed", "steps", "guidance", "sampler", "prompt")


@dataclass(frozen=True)
class UsedLora:
    """A LoRA with the weight it is used at, and what picture files say of it."""

    lora: Lora
    note: LoraNote


def use_lora(path: Path, weight: float = 1.0) -> UsedLora:
    """Read a LoRA file, or a folder with one such as a checkpoint, to be used at ``weight``.

    Raises:
        LoraError: as ``read_lora``.
    """
    file = lora_file(path)
    name = path.name if path.is_dir() else path.stem
    return UsedLora(read_lora(file), LoraNote(name, weight, sha256_file(file)))


@contextmanager
def fused(sd: StableDiffusion, loras: Sequence[UsedLora]) -> Iterator[None]:
    """Add LoRAs to the base's weights for as long as the block lasts.

    Raises:
        LoraError: one does not fit; nothing was changed.
    """
    for used in loras:
        used.lora.check_fits(sd)
    try:
        for used in loras:
            fuse(sd, used.lora, used.note.weight)
        yield
    finally:
        restore(sd)


def generate(
    sd: StableDiffusion,
    requests: Sequence[Request],
    out: Path,
    *,
    pattern: str = PATTERN,
    loras: Sequence[UsedLora] = (),
    batch: int = 4,
    captions: bool = False,
) -> Iterator[Event]:
    """Draw ``requests`` into PNG files under ``out`` that say how they were made.

    Nothing is overwritten: a picture whose name is taken gets the next free index. Names follow the order of
    ``requests``, whatever the order of drawing, and the same call into an empty folder writes the same bytes.

    Args:
        pattern: of the names without ".png", with fields such as ``{index:05d}``, ``{seed}`` and ``{prompt}``.
        loras: fused while drawing; afterwards the base has its own weights again.
        batch: pictures at once; see ``sample``.
        captions: write each picture's prompt into a .txt file beside it too, as trainers read captions.

    Yields:
        Warned for each prompt that is longer than the text encoder reads, Progress and PictureMade for each picture,
        and Finished with the seconds spent on a picture.

    Raises:
        RecipeError: a request or the pattern makes no sense.
        LoraError: a LoRA does not fit.
        OutputError: the disk refuses.
        DeviceError: the memory is not enough.
    """
    check_requests(sd, requests)
    _check_pattern(pattern)
    for used in loras:
        used.lora.check_fits(sd)
    require_writable(out)
    yield from map(Note, sd.notes)
    yield from _cut_prompts(sd, requests)
    paths = _free_paths(requests, out, pattern)
    notes = [used.note for used in loras]
    model = Path(sd.source).stem
    began = time.perf_counter()
    yield Progress("generate", 0, len(requests))
    with fused(sd, loras):
        for done, (i, picture) in enumerate(sample(sd, requests, batch=batch), start=1):
            request = requests[i]
            text = parameters_text(request, request.size(sd), model, sd.sha256, notes)
            data = png_bytes(picture, text)
            while not write_new(paths[i], data):  # another process took the name meanwhile
                paths[i] = _free_paths([request], out, pattern, len(requests) + i)[0]
            if captions:
                write_new(paths[i].with_suffix(".txt"), f"{request.prompt}\n".encode())
            yield PictureMade(paths[i], request.prompt, request.seed)
            yield Progress("generate", done, len(requests))
    seconds = (time.perf_counter() - began) / max(len(requests), 1)
    yield Finished("generate", tuple(paths), {"seconds_per_picture": seconds})


def _cut_prompts(sd: StableDiffusion, requests: Sequence[Request]) -> Iterator[Warned]:
    texts = list(dict.fromkeys(text for request in requests for text in (request.prompt, request.negative)))
    for text, length in zip(texts, sd.token_lengths(texts)):
        if length > sd.max_tokens:
            yield Warned(
                f"The text encoder reads {sd.max_tokens} tokens and this prompt has {length}; the rest is not seen: "
                f'"{text[:60]}..."'
            )


def _check_pattern(pattern: str) -> None:
    fix = f"Write a file name with fields among {', '.join(f'{{{name}}}' for name in _NAMES)}, such as {PATTERN}."
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
        name = _file_name(pattern, Request("a"), 1)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise RecipeError("The pattern for file names cannot be used.", where=pattern, fix=fix) from error
    if "index" not in fields or not name or re.search(r'[/\\:*?"<>|\0]', name) or name.startswith("."):
        raise RecipeError("The pattern must have {index} and make plain file names.", where=pattern, fix=fix)


def _file_name(pattern: str, request: Request, index: int) -> str:
    words = re.sub(r"\W+", "-", request.prompt)[:60].strip("-") or "picture"
    return pattern.format(
        index=index,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        sampler=request.sampler,
        prompt=words,
    )


def _free_paths(requests: Sequence[Request], out: Path, pattern: str, index: int = 0) -> list[Path]:
    """Return a free name for each request, with growing indices from ``index``."""
    paths: list[Path] = []
    for request in requests:
        while _is_taken(path := out / f"{_file_name(pattern, request, index)}.png"):
            index += 1
        paths.append(path)
        index += 1
    return paths


def _is_taken(path: Path) -> bool:
    return path.exists() or path.with_suffix(".txt").exists()
