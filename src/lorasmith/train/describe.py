"""What a training understood of its pictures, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorasmith.dataset.read import Dataset, Example
from lorasmith.errors import RecipeError
from lorasmith.events import Event, Note, Warned
from lorasmith.model.stable_diffusion import StableDiffusion


def describe_data(dataset: Dataset, training: Sequence[Example], held_out: Sequence[Example]) -> Iterator[Event]:
    """Say which pictures, captions and classes there are, what is held out, and what is left out and why."""
    used = len(dataset.examples)
    left_out = dataset.pictures_found - used
    classes = ", ".join(f"{label} {count}" for label, count in sorted(dataset.classes.items()))
    yield Note(
        f"{_count(dataset.pictures_found, 'picture')} found, {used} used, {left_out} left out; "
        f"{_count(len({e.caption for e in dataset.examples}), 'distinct caption')}; "
        f"{_count(len(dataset.classes), 'class', 'classes')}: {classes}."
    )
    for finding in dataset.findings:
        if finding.excludes:
            yield Warned(f"Left out: {finding} To do: {finding.fix}")
        elif finding.severity == "info":
            yield Note(str(finding))
        else:
            yield Warned(f"{finding} To do: {finding.fix}")
    if held_out:
        yield Note(f"{len(training)} to train on, {len(held_out)} held out to measure the validation loss.")
    else:
        yield Note(f"{len(training)} to train on, none held out, so there will be no validation loss.")


def describe_fit(sd: StableDiffusion, examples: Sequence[Example], size: int) -> Iterator[Event]:
    """Say how the pictures and captions suit the base.

    Raises:
        RecipeError: the base cannot work at ``size``.
    """
    if size % sd.vae_factor:
        near = max(1, round(size / sd.vae_factor)) * sd.vae_factor
        raise RecipeError(
            f"This base works at multiples of {sd.vae_factor} px, and the resolution is {size} px.",
            where="data.resolution",
            fix=f"Set data.resolution = {near}.",
        )
    number_format = str(sd.dtype).removeprefix("torch.")
    yield Note(f"Base {sd.source} at {size} x {size} px, on {sd.device} in {number_format}, the adapter in float32.")
    small = sum(min(e.width, e.height) < size for e in examples)
    if small:
        yield Warned(f"{_count(small, 'picture')} of {len(examples)} with a side under {size} px will be enlarged.")
    captions = [e.caption for e in examples]
    long = sum(length > sd.max_tokens for length in sd.token_lengths(captions))
    if long:
        yield Warned(f"{_count(long, 'caption')} with more than {sd.max_tokens} tokens; the rest of each is not read.")


def duration(seconds: float) -> str:
    """Return a length of time in words, such as ``2 h 5 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
