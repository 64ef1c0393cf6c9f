"""The pictures and captions of a training made ready, with every picture that was found accounted for."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from hashlib import sha256
from typing import Any

from lorasmith.cache import cache_folder
from lorasmith.dataset.bucket import View, views
from lorasmith.dataset.read import Example
from lorasmith.errors import DataError
from lorasmith.events import Event, Note, Warned
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train.encode import Cache, LatentSet, TextSet, encode_captions, encode_pictures, tokenize_captions
from lorasmith.train.ranks import ALONE, Ranks
from lorasmith.train.resume import record_pictures

_RECORD = "pictures"


def prepare(
    sd: StableDiffusion,
    recipe: Recipe,
    run: Run,
    size: int,
    found: int,
    parts: tuple[Sequence[Example], Sequence[Example]],
    allow_changes: bool,
    ranks: Ranks = ALONE,
) -> Generator[Event, None, tuple[LatentSet, LatentSet, TextSet]]:
    """Encode pictures and captions, then send the parts of ``sd`` that are not trained off the device.

    A picture that fails, because it has changed or gone since it was read, or has no finite latents, is told and left
    out. So is, when a run is gone on with, each that failed when it began, even if it is well by now: the others would
    come in another order. How many were found, trained on, held out and left out is recorded in the run.

    Args:
        found: pictures, used or not.
        parts: those to train on, and those held out.

    Raises:
        DataError: none is left to train on; or one failed, and the recipe is strict.
        RunError: others failed than when the run began, unless ``allow_changes``.
    """
    data, cache = recipe.data, Cache(cache_folder())

    def trained_views(example: Example) -> list[View]:
        return views(data.crop, data.crops, data.flip, recipe.train.seed, example.sha256)

    def middle(example: Example) -> list[View]:
        return views("center", 1, False, recipe.train.seed, example.sha256)

    before = ranks.tell(run.provenance.get(_RECORD, {}).get("failed", []))
    known = {entry["sha256"] for entry in before}
    for entry in before:
        yield Warned(f"Left out: {entry['picture']}, as when the run began.")
    training, held_out = ([e for e in part if e.sha256 not in known] for part in parts)
    latents = yield from encode_pictures(sd, training, size, trained_views, cache, "encoding", ranks)
    held = yield from encode_pictures(sd, held_out, size, middle, cache, "encoding held-out pictures", ranks)
    well = {*map(id, latents.examples), *map(id, held.examples)}
    failed = [e for e in (*training, *held_out) if id(e) not in well]
    if not latents.examples:
        raise DataError("None of the pictures could be encoded.", fix="Look at the warnings before this.")
    if failed and data.strict:
        raise DataError(
            "Pictures could not be encoded, and data.strict is on: " + ", ".join(map(_name, failed)),
            fix="Look at the warnings before this; mend the pictures or take them out.",
        )
    record_pictures(run, (latents.examples, held.examples), list(map(_name, failed)), allow_changes)
    counts = {"found": found, "trained_on": len(latents.examples), "held_out": len(held.examples)}
    failures = [*before, *({"picture": _name(e), "sha256": e.sha256} for e in failed)]
    record: dict[str, Any] = {**counts, "left_out": found - sum(map(len, parts)) + _among(parts, failures)}
    run.record(pictures={**record, "failed": failures})
    if failures:
        yield Note(
            f"{found} pictures found: {record['trained_on']} to train on, {record['held_out']} held out, "
            f"{record['left_out']} left out, {len(failures)} of them because they could not be encoded."
        )
    encoded = "".join(example.sha256 for example in (*latents.examples, *held.examples))
    ranks.require_same({"the pictures that could be encoded": sha256(encoded.encode()).hexdigest()})
    captions = [example.caption for example in (*latents.examples, *held.examples)]
    sd.vae.to("cpu")
    if recipe.lora.text_encoder:
        text = tokenize_captions(sd, captions)
    else:
        text = yield from encode_captions(sd, captions, cache, ranks)
        sd.text_encoder.to("cpu")
    return latents, held, text


def _name(example: Example) -> str:
    return f"{example.label}/{example.path.name}"


def _among(parts: tuple[Sequence[Example], Sequence[Example]], failures: Sequence[dict[str, str]]) -> int:
    """Return how many of the pictures failed, now or before; files of the same content fail together."""
    hashes = {entry["sha256"] for entry in failures}
    return sum(example.sha256 in hashes for part in parts for example in part)
