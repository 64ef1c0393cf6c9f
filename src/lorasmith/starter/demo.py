"""The demo: the reference work in miniature, from no pictures at all to the four weapons with pink blossoms."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorasmith.errors import OutputError
from lorasmith.evaluate.scores import rate
from lorasmith.events import Event, Finished, Note, Progress
from lorasmith.files import new_folder, write_bytes, write_json, write_text
from lorasmith.generate.generate import fused, use_lora
from lorasmith.generate.grid import grid, merge
from lorasmith.generate.sample import Request, sample
from lorasmith.model.judge import Judge, load_judge
from lorasmith.model.stable_diffusion import StableDiffusion, load_base, pick_device, pick_dtype
from lorasmith.recipe.schema import DataSection, LoraSection, Recipe, SamplesSection, TrainSection
from lorasmith.run import Run
from lorasmith.starter.backgrounds import BACKGROUNDS
from lorasmith.starter.paths import judge_folder
from lorasmith.starter.pictures import write_pictures
from lorasmith.starter.renderer import COLOURS, SEEN_KINDS, WEAPONS, article, background_phrase
from lorasmith.starter.shapes import KINDS
from lorasmith.starter.verdict import verdict
from lorasmith.train.loop import train

PICTURES = 25  # of each weapon
PALETTE = ("silver", "white", "brown")  # the weapons' colours, on which pink shows
BLOSSOM_SIZE = BLOSSOM_DISTANCE = 1.3  # large and apart, so that each can be told at 128 px
DATA_SEED = 5_000_000_000
SHOWN = 4  # pictures of each weapon in before-after.png
GUIDANCE = 3.0  # at 2 the LoRA leaves some blossoms out; the base draws well at either
PHRASE = "with pink blossom patterns"
BATCH = 16
KEPT = 8  # pictures of each kind that the base draws itself, so that the LoRA learns what not to change
_SCORED = (SHOWN, 8, 12, 16, 24, 32, 50)  # pictures of each weapon that are scored: the most that fit the time


def weapon_prompt(kind: str) -> str:
    """Return the prompt that the demo draws a weapon by."""
    item = f"{article(f'silver {kind}')} with {article(f'white {KINDS[kind].second}')}"
    return f"{item} {PHRASE} on a plain green background"


def demo_recipe(folders: Sequence[Path], preserve: Sequence[Path] = ()) -> Recipe:
    """Return the demo's recipe: one LoRA for all four weapons, on every kind of layer."""
    return Recipe(
        name="pink-blossom-weapons",
        data=DataSection(folders=tuple(folders), preserve=tuple(preserve), flip=True, validation=0.08),
        lora=LoraSection(rank=16, alpha=16, targets="all"),
        train=TrainSection(
            steps=650,
            batch=16,
            learning_rate=2e-3,
            schedule="cosine",
            warmup=30,
            save_every=325,
            noise_offset=0.05,
            caption_dropout=0.0,
            preserve_weight=1.5,
        ),
        samples=SamplesSection(prompts=tuple(weapon_prompt(k) for k in WEAPONS), guidance=GUIDANCE),
    )


def _keep(sd: StableDiffusion, judge: Judge, folder: Path) -> Iterator[Event]:
    """Write pictures by the base with their prompts as captions, for it to go on to draw so.

    Only those in which the judge finds the kind that was asked for and no blossoms: the base's slips are not to be
    kept. Where none is left there is no folder.
    """
    asked = _what_to_keep(np.random.default_rng(DATA_SEED))
    requests = [Request(prompt, seed=8000 + i, guidance=GUIDANCE) for i, (_, prompt) in enumerate(asked)]
    drawn = yield from _sampled(sd, requests, "drawing what to keep")
    kinds = [kind for kind, _ in asked]
    seen = verdict(judge, drawn, kinds)
    good = [i for i, right in enumerate(seen.right_kinds(kinds)) if right and not seen.blossoms[i]]
    yield Note(f"{len(good)} of {len(asked)} are as the judge would have them and are kept.")
    if not good:
        return
    new_folder(folder)
    for i in good:
        write_bytes(folder / f"{i:04d}.png", _png(Image.fromarray(drawn[i])))
    lines = [json.dumps({"file_name": f"{i:04d}.png", "text": asked[i][1]}) for i in good]
    write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")


def _what_to_keep(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return kinds and prompts for them, that say much and little in turn."""
    asked = []
    for kind in SEEN_KINDS:
        for number in range(KEPT):
            main, second, other = (str(c) for c in rng.choice(list(COLOURS), 3, replace=False))
            background = str(rng.choice(list(BACKGROUNDS)))
            coloured = article(f"{main} {kind}")
            item = f"{coloured} with {article(f'{second} {KINDS[kind].second}')}"
            behind = background_phrase(rng, background, other)
            wordings = (f"{item} {behind}", article(kind), item, f"{coloured} {behind}")
            asked.append((kind, wordings[number % len(wordings)]))
    return asked


@dataclass(frozen=True)
class Drawn:
    """Pictures of the weapons, uint8 (weapons, seeds, H, W, 3)."""

    pictures: NDArray[np.uint8]

    def of(self, kind: str) -> NDArray[np.uint8]:
        """Return the pictures of one weapon, (seeds, H, W, 3)."""
        return np.asarray(self.pictures[WEAPONS.index(kind)])


def demo(out: Path, minutes: float = 10.0) -> Iterator[Event]:
    """Draw a data set, train, generate before and after, score, and say what came of it.

    Args:
        out: a new or empty folder; it will hold data/, run/, before-after.png, merged.png and scores.json.
        minutes: how long it may take; the number of scored pictures is chosen to fit.

    Raises:
        OutputError: the folder holds something, or cannot be written.
    """
    began = time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            "The demo's folder is not empty.", where=str(out), fix="Name a new one with --out, or delete it."
        )  # fmt: skip
    new_folder(out)
    yield Note(f"Drawing {PICTURES} pictures of each: {', '.join(WEAPONS)}, with pink blossom patterns.")
    folders = write_pictures(
        out / "data", WEAPONS, PICTURES, seed=DATA_SEED, palette=PALETTE, blossom_size=BLOSSOM_SIZE,
        blossom_distance=BLOSSOM_DISTANCE, brief=True,
    )  # fmt: skip
    device = pick_device()
    sd = load_base("starter", device=device, dtype=pick_dtype("auto", device))
    yield Note(f"Letting the base draw {KEPT} of each kind it knows, without blossoms: what it shall not forget.")
    kept, judge = out / "data" / "kept", load_judge(judge_folder())
    yield from _keep(sd, judge, kept)
    with Run.create(out / "run", demo_recipe(folders, [kept] if kept.is_dir() else ())) as run:
        for event in train(run.recipe, run):
            if not isinstance(event, Finished):
                yield event
    lora = out / "run" / "lora.safetensors"

    yield Note(f'Drawing by prompts such as "{weapon_prompt(WEAPONS[0])}", at guidance {GUIDANCE:g}.')
    start = time.monotonic()
    before = yield from _draw(sd, range(SHOWN), "drawing before")
    each = (time.monotonic() - start) / (SHOWN * len(WEAPONS))
    left = minutes * 60 - (time.monotonic() - began) - 20
    scored = max((n for n in _SCORED if n * len(WEAPONS) * each * 2 <= left), default=SHOWN)
    with fused(sd, [use_lora(lora)]):
        after = yield from _draw(sd, range(scored), "drawing after")
    if scored > SHOWN:
        more = yield from _draw(sd, range(SHOWN, scored), "drawing before")
        before = Drawn(np.concatenate([before.pictures, more.pictures], axis=1))
    pictures = _pictures(out, before, after)
    yield Note("Asking the judge, a small CLIP that has seen every kind of item, with and without blossoms.")
    yield from _scores(out, judge, before, after)
    yield Note(f"The LoRA: {lora}")
    yield Note("Next, on your own photos: lorasmith train PICTURE_FOLDER --base starter (docs/guide.md tells more).")
    figures = {"seconds": time.monotonic() - began, "pictures_scored_per_weapon": float(scored)}
    yield Finished("demo", (*pictures, lora), figures)


def _draw(sd: StableDiffusion, seeds: Sequence[int], stage: str) -> Generator[Event, None, Drawn]:
    requests = [Request(weapon_prompt(kind), seed=9000 + seed, guidance=GUIDANCE) for kind in WEAPONS for seed in seeds]
    pictures = yield from _sampled(sd, requests, stage)
    return Drawn(pictures.reshape(len(WEAPONS), len(seeds), *pictures.shape[1:]))


def _sampled(sd: StableDiffusion, requests: Sequence[Request], stage: str) -> Generator[Event, None, NDArray[np.uint8]]:
    """Return what is asked for, in order, uint8 (N, H, W, 3), telling of the progress."""
    found: dict[int, NDArray[np.uint8]] = {}
    yield Progress(stage, 0, len(requests))
    for index, picture in sample(sd, requests, batch=BATCH):
        found[index] = picture
        yield Progress(stage, len(found), len(requests))
    return np.stack([found[i] for i in range(len(requests))])


def _pictures(out: Path, before: Drawn, after: Drawn) -> tuple[Path, Path]:
    def block(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        a, b, c, d = pictures[:SHOWN]
        return np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)], 0)

    rows = [[block(drawn.of(kind)) for kind in WEAPONS] for drawn in (before, after)]
    labels = [f"{kind} {PHRASE}" for kind in WEAPONS]
    comparison = grid(rows, columns=labels, rows=("base", "with the LoRA"))
    strip = merge([after.of(kind)[0] for kind in WEAPONS], height=512)
    paths = (out / "before-after.png", out / "merged.png")
    for path, image in zip(paths, (comparison, strip)):
        write_bytes(path, _png(image))
    return paths


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _scores(out: Path, judge: Judge, before: Drawn, after: Drawn) -> Iterator[Event]:
    table = []
    for kind in WEAPONS:
        row: dict[str, object] = {"weapon": kind}
        for name, drawn in (("base", before), ("lora", after)):
            pictures = drawn.of(kind)
            seen = verdict(judge, pictures, [kind] * len(pictures))
            right, flowered = rate(seen.right_kinds([kind] * len(pictures))), rate(seen.blossoms)
            row[name] = {"right_kind": right.value, "blossom": flowered.value, "pictures": right.count}
            yield Note(f"{kind:8} {name:5} right kind {right}, blossom {flowered}")
        table.append(row)
    write_json(out / "scores.json", table)
