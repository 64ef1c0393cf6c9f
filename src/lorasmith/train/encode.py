"""Pictures and captions as the UNet sees them, encoded once and kept in a cache on disk.

The cache is keyed by content: the picture's bytes, the crop, the size and the weights that encode. So any run may
use what another has encoded, and nothing in it can be out of date. Each picture is encoded by itself, so that its
latents do not depend on which others were in the cache already.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lorasmith import files
from lorasmith.dataset.bucket import View, fit
from lorasmith.dataset.picture import open_rgb
from lorasmith.dataset.read import Example
from lorasmith.errors import DataError, OutputError
from lorasmith.events import Event, Progress, Warned
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.train.ranks import ALONE, Ranks

_FORMAT = 2  # of the cache; a change in what is stored, or in how pictures are cut, needs the next number
_DIGEST = hashlib.sha256().digest_size
_T = TypeVar("_T")
_PIXELS_AT_ONCE = 2**18  # bounds the VAE's memory; fixed, so that latents do not depend on the machine


@dataclass(frozen=True)
class LatentSet:
    """Encoded pictures: ``mean`` and ``std`` of each view's latent distribution, (N, V, C, h, w), fp32, scaled."""

    examples: tuple[Example, ...]
    mean: Tensor
    std: Tensor

    @property
    def views(self) -> int:
        """V, the cached crops and mirror images of each picture."""
        return self.mean.shape[1]


@dataclass(frozen=True)
class TextSet:
    """Distinct captions: embeddings (M, T, D), or token ids (M, T) for a text encoder that is trained, in ``table``."""

    table: Tensor
    captions: dict[str, int]

    def rows(self, captions: Iterable[str]) -> Tensor:
        """Return the table's rows of ``captions``, (n,). The empty caption is row 0."""
        return torch.tensor([self.captions[caption] for caption in captions])


class Cache:
    """Tensors on disk by key: a safetensors file each, complete or absent, after the 32 bytes of its SHA-256.

    The files are not forced to disk, which would take longer than encoding small pictures does. The hash finds those
    that a power failure has damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return what is stored under ``key``, or None where that is nothing or unreadable."""
        try:
            stored = self._path(key).read_bytes()
            data = stored[_DIGEST:]
            if hashlib.sha256(data).digest() != stored[:_DIGEST]:
                return None
            tensors: dict[str, Tensor] = safetensors.torch.load(data)
        except (OSError, SafetensorError):
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store ``tensors`` under ``key``.

        Raises:
            OutputError: the disk refuses.
        """
        path = self._path(key)
        files.new_folder(path.parent)
        data = safetensors.torch.save(tensors)
        files.write_bytes(path, hashlib.sha256(data).digest() + data, durable=False)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.tensors"


def encode_pictures(
    sd: StableDiffusion,
    examples: Sequence[Example],
    size: int,
    views: Callable[[Example], Sequence[View]],
    cache: Cache,
    stage: str = "encoding",
    ranks: Ranks = ALONE,
) -> Generator[Event, None, LatentSet]:
    """Encode the pictures that are not in ``cache`` yet and return all of them, in their order.

    Args:
        size: side of the square the pictures are fitted to, in pixels.
        views: the crops of a picture, equally many for each.
        ranks: the processes that share the work: all that see the same cache, so on machines without a common disk
            those of each machine. What another should have encoded and the cache still lacks, each encodes by itself.

    A picture that cannot be decoded or encoded is warned about and left out.
    """
    encoder = [sd.vae_sha256, str(sd.vae.dtype), sd.device.type]
    keys = [_key("picture", e.sha256, size, [asdict(view) for view in views(e)], *encoder) for e in examples]
    stored = {key: found for key in keys if (found := cache.get(key))}
    missing = [(key, e) for key, e in dict(zip(keys, examples, strict=True)).items() if key not in stored]
    store = _Store(cache)

    def encode(items: Sequence[tuple[str, Example]], left_out: Callable[[str], Iterator[Event]]) -> Iterator[Event]:
        if items:
            yield Progress(stage, 0, len(items))
        pixels = _ahead(lambda item: _read(item[1], size, views(item[1])), items)
        for done, ((key, example), future) in enumerate(pixels, start=1):
            try:
                stored[key] = _encode(sd, future.result(), example)
                yield from store.put(key, stored[key])
            except DataError as error:
                yield from left_out(f"Left out: {error}")
            yield Progress(stage, done, len(items))

    if not ranks.alone:  # what fails is tried again below by all, so that the first can tell of it
        yield from encode(_own(missing, ranks, cache), lambda _: iter(()))
        ranks.barrier()
        stored |= {key: found for key, _ in missing if key not in stored and (found := cache.get(key))}
        missing = [(key, e) for key, e in missing if key not in stored]
    yield from encode(missing, lambda text: iter((Warned(text),)))
    kept = [(key, e) for key, e in zip(keys, examples, strict=True) if key in stored]
    edge = size // sd.vae_factor
    nothing = torch.empty(0, 1, sd.latent_channels, edge, edge)
    mean, std = (torch.stack([stored[key][name] for key, _ in kept]) if kept else nothing for name in ("mean", "std"))
    return LatentSet(tuple(e for _, e in kept), mean, std)


def encode_captions(
    sd: StableDiffusion, captions: Iterable[str], cache: Cache, ranks: Ranks = ALONE
) -> Generator[Event, None, TextSet]:
    """Encode the distinct captions, and the empty one, that are not in ``cache`` yet; return all.

    Args:
        ranks: the processes that share the work, as for ``encode_pictures``.
    """
    distinct = ["", *sorted(set(captions) - {""})]
    encoder = [sd.sha256, str(sd.dtype), sd.device.type]
    store = _Store(cache)
    keys = {caption: _key("caption", caption, *encoder) for caption in distinct}
    stored = {caption: found for caption, key in keys.items() if (found := cache.get(key))}

    def encode(those: Sequence[str]) -> Iterator[Event]:
        for caption in those:
            with torch.no_grad():
                stored[caption] = {"embedding": sd.encode_text([caption])[0].cpu().contiguous()}
            yield from store.put(keys[caption], stored[caption])

    missing = [caption for caption in distinct if caption not in stored]
    if not ranks.alone:
        yield from encode(_own(missing, ranks, cache))
        ranks.barrier()
        stored |= {c: found for c in missing if c not in stored and (found := cache.get(keys[c]))}
        missing = [caption for caption in missing if caption not in stored]
    yield from encode(missing)
    table = torch.stack([stored[caption]["embedding"] for caption in distinct])
    return TextSet(table, {caption: row for row, caption in enumerate(distinct)})


def tokenize_captions(sd: StableDiffusion, captions: Iterable[str]) -> TextSet:
    """Return the distinct captions, and the empty one, as token ids for a text encoder that is trained."""
    distinct = ["", *sorted(set(captions) - {""})]
    tokens = sd.tokenizer(
        distinct, padding="max_length", max_length=sd.max_tokens, truncation=True, return_tensors="pt"
    )
    return TextSet(tokens.input_ids, {caption: row for row, caption in enumerate(distinct)})


def pictures_at_once(size: int) -> int:
    """Return how many views of a picture, squares of ``size`` pixels, the VAE encodes at once."""
    return max(1, _PIXELS_AT_ONCE // size**2)


def _own(missing: Sequence[_T], ranks: Ranks, cache: Cache) -> Sequence[_T]:
    """Return this process's part of what is missing. All have looked when any goes on, so that all see the same."""
    number, count = ranks.sharing(cache.folder)
    return missing[number::count]


class _Store:
    """Puts into the cache until that fails once: a full disk costs the next run some time, not this one its work."""

    def __init__(self, cache: Cache) -> None:
        self.cache: Cache | None = cache

    def put(self, key: str, tensors: dict[str, Tensor]) -> Iterator[Event]:
        if self.cache is None:
            return
        try:
            self.cache.put(key, tensors)
        except OutputError as error:
            yield Warned(f"Encoded pictures and captions are not kept for the next run. {error}")
            self.cache = None


def _read(example: Example, size: int, views: Sequence[View]) -> Tensor:
    picture = open_rgb(example.path)
    if _hash_of(example) != example.sha256:  # else the cache would hold this picture under the other's name
        raise DataError(
            "The picture has changed since it was read.",
            where=str(example.path),
            fix="Leave the pictures alone while they are encoded; begin again to train on it as it is now.",
        )
    crops = [fit(picture, (size, size), x=view.x, y=view.y, flip=view.flip) for view in views]
    return torch.from_numpy(np.stack(crops))


def _hash_of(example: Example) -> str:
    try:
        return files.sha256_file(example.path)
    except OSError as error:
        reason = f"The picture cannot be read: {error.strerror}."
        raise DataError(reason, where=str(example.path), fix="Check the disk.") from error


@torch.no_grad()
def _encode(sd: StableDiffusion, pixels: Tensor, example: Example) -> dict[str, Tensor]:
    parts = [sd.encode_pictures(part) for part in torch.split(pixels, pictures_at_once(pixels.shape[1]))]
    mean, std = (torch.cat(part).float().cpu().contiguous() for part in zip(*parts, strict=True))
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise DataError(
            "The VAE gives no finite latents for this picture.",
            where=str(example.path),
            fix='Look at the picture, and try train.precision = "fp32".',
        )
    return {"mean": mean, "std": std}


def _ahead(
    work: Callable[[tuple[str, Example]], Tensor], items: Iterable[tuple[str, Example]], depth: int = 4
) -> Iterator[tuple[tuple[str, Example], Future[Tensor]]]:
    """Yield each item with its work, while threads work ahead on the next few; memory holds ``depth`` pictures."""
    waiting: deque[tuple[tuple[str, Example], Future[Tensor]]] = deque()
    rest = iter(items)
    with ThreadPoolExecutor(max_workers=min(depth, os.cpu_count() or 1)) as pool:
        waiting.extend((item, pool.submit(work, item)) for item in islice(rest, depth))
        while waiting:
            yield waiting.popleft()
            waiting.extend((item, pool.submit(work, item)) for item in islice(rest, 1))


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()
