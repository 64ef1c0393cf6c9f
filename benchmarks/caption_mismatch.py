"""Swap a tenth of the captions of drawn pictures, and see how many `lorasmith caption --lint` finds with a CLIP.

    python benchmarks/caption_mismatch.py --write benchmarks/results/caption-mismatch.md

Each line is one set of pictures that no training has seen. A swapped caption that reads the same as the right one is
not counted as swapped. Two ways: pairs that trade captions, and a ring in which each takes the next one's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorasmith.evaluate.mismatch import embed_captions, find_mismatches
from lorasmith.evaluate.scores import Rate
from lorasmith.model.judge import Judge, load_judge
from lorasmith.starter.paths import judge_folder
from lorasmith.starter.renderer import render

SEEDS = 5_000_000_000  # far from every range that a training draws from
Floats = NDArray[np.float32]


def draw(judge: Judge, seed: int, count: int, blossom: float) -> tuple[Floats, list[str]]:
    """Return the embeddings of ``count`` pictures and their captions."""
    parts, captions = [], []
    for start in range(0, count, 100):
        rendered = [render(SEEDS + seed * 100_000 + i, blossom=blossom) for i in range(start, min(count, start + 100))]
        parts.append(judge.embed_pictures(np.stack([r.image for r in rendered])).numpy())
        captions += [r.caption for r in rendered]
    return np.concatenate(parts), captions


def swapped(count: int, share: float, way: str, seed: int) -> NDArray[np.int64]:
    """Return whose caption each picture gets."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(count)[: round(count * share / 2) * 2]
    order = np.arange(count)
    if way == "ring":
        order[chosen] = np.roll(chosen, 1)
    else:
        order[chosen[::2]], order[chosen[1::2]] = chosen[1::2], chosen[::2]
    return order


def measure(judge: Judge, options: argparse.Namespace) -> Iterator[tuple[str, Rate, Rate, float, str]]:
    """Yield for each set its name, the rates of swaps found and of false alarms, the estimate, and pairs named."""
    for seed in range(options.sets):
        pictures, captions = draw(judge, seed, options.pictures, options.blossom)
        for way in ("pairs", "ring") if options.share else ("none",):
            order = swapped(len(captions), options.share, way, seed)
            texts = [captions[i] for i in order]
            wrong = np.array([text != right for text, right in zip(texts, captions)])
            result = find_mismatches(pictures, embed_captions(judge, texts), texts)
            listed = np.zeros(len(texts), dtype=bool)
            listed[[m.index for m in result.found]] = True
            found = Rate(int((listed & wrong).sum()), int(wrong.sum()))
            alarms = Rate(int((listed & ~wrong).sum()), int((~wrong).sum()))
            pairs = [m for m in result.found if m.swapped_with is not None]
            right = sum(int(order[m.index]) == m.swapped_with for m in pairs)
            yield f"{seed}, {way}", found, alarms, result.wrong_share, f"{right} of {len(pairs)}"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=judge_folder(), help="a CLIP's folder (default: the judge)")
    parser.add_argument("--pictures", type=int, default=400, help="in a set (default 400)")
    parser.add_argument("--sets", type=int, default=5, help="sets of pictures, each with other seeds (default 5)")
    parser.add_argument("--share", type=float, default=0.1, help="of the captions that are swapped (default 0.1)")
    parser.add_argument("--blossom", type=float, default=0.25, help="share of items with blossoms (default 0.25)")
    parser.add_argument("--write", type=Path, help="also write the table to this markdown file")
    options = parser.parse_args()
    judge = load_judge(options.clip)
    lines = [
        f"Measured {date.today()} with the CLIP {options.clip.name!r}: {options.pictures} drawn pictures a set, "
        f"{options.share:.0%} of the captions swapped.",
        "",
        "| set | swapped captions found | false alarms | wrong captions, estimated | pairs named rightly |",
        "| --- | --- | --- | --- | --- |",
    ]
    all_found, all_alarms = Rate(0, 0), Rate(0, 0)
    for name, found, alarms, estimate, pairs in measure(judge, options):
        lines.append(f"| {name} | {found} | {alarms} | {estimate:.1%} | {pairs} |")
        print(lines[-1], flush=True)
        all_found = Rate(all_found.hits + found.hits, all_found.count + found.count)
        all_alarms = Rate(all_alarms.hits + alarms.hits, all_alarms.count + alarms.count)
    lines.append(f"| all | {all_found} | {all_alarms} | | |")
    print("\n".join(lines))
    if options.write:
        options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
