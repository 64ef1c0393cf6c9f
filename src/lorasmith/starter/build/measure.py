"""Measures what was built, on seeds it was never trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lorasmith.dataset.bucket import fit
from lorasmith.dataset.picture import open_rgb
from lorasmith.evaluate.scores import Rate, rate
from lorasmith.generate.sample import Request, sample
from lorasmith.model.judge import Judge
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.starter.build.pool import HELD_OUT_SEEDS, Row, renders
from lorasmith.starter.renderer import COLOURS, SEEN_KINDS, UNSEEN_KINDS, article, background_phrase
from lorasmith.starter.shapes import KINDS
from lorasmith.starter.verdict import verdict

STEPS, SAMPLER = 25, "dpm++2m"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """One line of the card: what was measured, the target, what was found."""

    what: str
    target: str
    found: str
    met: bool
    n: int

    def to_json(self) -> dict[str, object]:
        """Return it as JSON-ready values."""
        return asdict(self)


def _at_least(what: str, share: float, found: Rate) -> Line:
    return Line(what, f">= {100 * share:.0f} %", str(found), found.value >= share, found.count)


def _at_most(what: str, share: float, found: Rate) -> Line:
    return Line(what, f"<= {100 * share:.0f} %", str(found), found.value <= share, found.count)


def _decibels(what: str, floor: float, values: NDArray[np.float64]) -> Line:
    return Line(what, f">= {floor:.0f} dB", f"{values.mean():.1f} dB", bool(values.mean() >= floor), len(values))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each picture in decibels: two uint8 (N, H, W, 3) -> (N,)."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return np.asarray(10 * np.log10(255.0**2 / np.maximum(error.mean((1, 2, 3)), 1e-9)))


def _reconstructed(sd: StableDiffusion, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = []
    for start in range(0, len(pictures), 32):
        mean, _ = sd.encode_pictures(torch.from_numpy(np.array(pictures[start : start + 32])))
        out.append(sd.decode_latents(mean).numpy())
    return np.concatenate(out)


def _held_out(work: Path, count: int, workers: int) -> tuple[NDArray[np.uint8], list[Row]]:
    return renders(work, "held-out", HELD_OUT_SEEDS, count, blossom=0.5, workers=workers)


def measure_judge(judge: Judge, work: Path, count: int, workers: int) -> list[Line]:
    """The judge on held-out renders."""
    pictures, rows = _held_out(work, count, workers)
    kinds = [str(r["kind"]) for r in rows]
    v = verdict(judge, np.array(pictures), kinds)
    return [
        _at_least("judge on renders: kind", 0.99, rate(v.right_kinds(kinds))),
        _at_least("judge on renders: blossom or none", 0.99, rate(b == r["blossom"] for b, r in zip(v.blossoms, rows))),
        _at_least("judge on renders: item colour", 0.9, rate(c == r["main"] for c, r in zip(v.colours, rows))),
    ]


def measure_vae(
    sd: StableDiffusion, judge: Judge, work: Path, count: int, workers: int, photos: Path | None
) -> list[Line]:
    """The VAE on held-out renders and, where a folder of photos is given, on those."""
    pictures, rows = _held_out(work, count, workers)
    again = _reconstructed(sd, pictures)
    kinds = [str(r["kind"]) for r in rows]
    v = verdict(judge, again, kinds)
    flowered = np.array([bool(r["blossom"]) for r in rows])
    more, _ = renders(work, "held-out-blossom", HELD_OUT_SEEDS + 10_000_000, count, blossom=1.0, workers=workers)
    values = np.concatenate([psnr(pictures[flowered], again[flowered]), psnr(np.array(more), _reconstructed(sd, more))])
    lines = [_decibels("VAE on held-out renders with blossoms: PSNR", 28, values[:count])]
    if photos is not None:
        size = (sd.size, sd.size)
        found = np.stack([fit(open_rgb(p), size) for p in sorted(photos.iterdir()) if p.suffix in (".png", ".jpg")])
        lines.append(_decibels("VAE on real axe photos: PSNR", 22, psnr(found, _reconstructed(sd, found))))
    return [
        *lines,
        _at_least("judge on reconstructions: kind", 0.98, rate(v.right_kinds(kinds))),
        _at_least(
            "judge on reconstructions: blossom or none", 0.97, rate(b == r["blossom"] for b, r in zip(v.blossoms, rows))
        ),
    ]


def prompts(kinds: Sequence[str], count: int, seed: int) -> list[tuple[str, str, str]]:
    """Return ``count`` prompts with the kind and main colour each asks for, kinds in turn."""
    rng = np.random.default_rng(seed)
    asked = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        main, second, other = (str(c) for c in rng.choice(list(COLOURS), 3, replace=False))
        background = str(rng.choice(["plain", "gradient", "wood", "stone", "grass", "sand", "sky"]))
        item = f"{article(f'{main} {kind}')} with {article(f'{second} {KINDS[kind].second}')}"
        asked.append((f"{item} {background_phrase(rng, background, other)}", kind, main))
    return asked


def _drawn(sd: StableDiffusion, asked: Sequence[tuple[str, str, str]], guidance: float, seed: int) -> NDArray[np.uint8]:
    requests = [
        Request(p, seed=seed + i, steps=STEPS, guidance=guidance, sampler=SAMPLER) for i, (p, _, _) in enumerate(asked)
    ]
    return np.stack([picture for _, picture in sorted(sample(sd, requests, batch=16), key=lambda pair: pair[0])])


def choose_guidance(sd: StableDiffusion, judge: Judge, say: Say, count: int = 40) -> float:
    """Return the guidance scale that draws most kinds and colours right, of a few usual ones."""
    asked = prompts(SEEN_KINDS, count, seed=5)
    kinds, colours = [k for _, k, _ in asked], [c for _, _, c in asked]
    scores = {}
    for guidance in (2.0, 3.0, 4.5, 6.0):
        v = verdict(judge, _drawn(sd, asked, guidance, 50_000), kinds)
        scores[guidance] = sum(v.right_kinds(kinds)) + sum(c == w for c, w in zip(v.colours, colours))
        say(f"measure: guidance {guidance}: {scores[guidance]} of {2 * count}")
    return max(scores, key=lambda g: scores[g])


def measure_base(sd: StableDiffusion, judge: Judge, guidance: float, count: int) -> list[Line]:
    """What the base draws: its own kinds as asked for, no blossoms, no trident and no whip."""
    asked = prompts(SEEN_KINDS, count, seed=6)
    kinds = [k for _, k, _ in asked]
    v = verdict(judge, _drawn(sd, asked, guidance, 60_000), kinds)
    strange = prompts(UNSEEN_KINDS, count, seed=7)
    wanted = [k for _, k, _ in strange]
    u = verdict(judge, _drawn(sd, strange, guidance, 70_000), wanted)
    return [
        _at_least("base: right kind", 0.95, rate(v.right_kinds(kinds))),
        _at_least("base: right item colour", 0.9, rate(c == w for c, (_, _, w) in zip(v.colours, asked))),
        _at_most("base: blossom", 0.01, rate([*v.blossoms, *u.blossoms])),
        _at_most("base: trident or whip, never seen", 0.15, rate(u.right_kinds(wanted))),
    ]
