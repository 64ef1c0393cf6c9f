"""Measure ``curate`` on drawn pictures, of which everything is known, and its false alarms on photos.

    python benchmarks/curate_quality.py --count 100 --photos data/axe --write

The subject: intersection over union with the drawn item's mask. Lines and text: how many of those drawn are found, and
on how many clean pictures something is claimed. Filling: how many dB the damaged pixels come nearer to the true
picture, with the true mask and, for what is found, with the found one. Seeds from 500,000 on, used by nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import cv2
import numpy as np

from drawn_overlays import add_line, add_text
from lorasmith.dataset.inpaint import METHODS, fill_holes
from lorasmith.dataset.overlays import find_lines, find_text
from lorasmith.dataset.picture import SUFFIXES, open_rgb
from lorasmith.dataset.subject import find_subject
from lorasmith.starter.renderer import render

FIRST_SEED = 500_000
SURE = 0.5
FINDERS: dict[str, tuple[Callable, Callable]] = {"line": (find_lines, add_line), "text": (find_text, add_text)}
RESULTS = Path(__file__).parent / "results"


def subject_table(count: int, size: int) -> list[str]:
    """Return the subject's table, by background."""
    by: dict[str, list[tuple[float, float]]] = defaultdict(list)
    spent = 0.0
    for index in range(count):
        drawn = render(FIRST_SEED + index, size=size)
        start = time.process_time()
        subject = find_subject(drawn.image)
        spent += time.process_time() - start
        truth = drawn.truth.mask > 127
        iou = float((truth & subject.mask).sum() / (truth | subject.mask).sum())
        by[drawn.truth.background].append((iou, subject.confidence))
    everything = [pair for pairs in by.values() for pair in pairs]
    lines = [
        f"## The subject ({count} pictures of {size} x {size}, {1000 * spent / count:.0f} ms of one core each)",
        "",
        f"| background | pictures | mean IoU | sure (>= {SURE}) | mean IoU of the sure | sure but IoU < 0.7 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, pairs in [*sorted(by.items()), ("**all**", everything)]:
        sure = [iou for iou, confidence in pairs if confidence >= SURE]
        wrong = sum(iou < 0.7 for iou in sure)
        mean = np.mean([iou for iou, _ in pairs])
        kept = f"{np.mean(sure):.3f}" if sure else "-"
        lines.append(f"| {name} | {len(pairs)} | {mean:.3f} | {len(sure)} | {kept} | {wrong} |")
    return [*lines, ""]


def decibels(picture: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio over the pixels ``where``."""
    error = float(np.square(picture[where].astype(np.float64) - truth[where]).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-3)))


def overlay_table(count: int, size: int, photos: Sequence[Path]) -> list[str]:
    """Return the table of what is found, falsely claimed and filled."""
    lines = [
        f"## Lines and text ({count} pictures of {size} x {size})",
        "",
        "| | found | false alarms, drawn | false alarms, photos | ms of one core |",
        "| --- | --- | --- | --- | --- |",
    ]
    gains: dict[str, list[float]] = defaultdict(list)
    for name, (find, add) in FINDERS.items():
        hits, alarms, spent = 0, [], 0.0
        for index in range(count):
            drawn = render(FIRST_SEED + index, size=size)
            start = time.process_time()
            claimed = sure_mask(find, drawn.image)
            spent += time.process_time() - start
            alarms += [drawn.truth.background] if claimed.any() else []
            damaged, truth = add(np.random.default_rng(FIRST_SEED + index), drawn.image)
            before = decibels(damaged, drawn.image, truth)
            found = sure_mask(find, damaged)
            if (found & truth).sum() > 0.5 * truth.sum():
                hits += 1
                filled, _ = fill_holes(damaged, found)
                gains[f"{name}, found mask"].append(decibels(filled, drawn.image, truth) - before)
            hole = cv2.dilate(truth.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            for method in ("auto", *METHODS):
                filled, _ = fill_holes(damaged, hole, method)
                gains[f"{name}, true mask, {method}"].append(decibels(filled, drawn.image, truth) - before)
        on_photos = [path.name for path in photos if sure_mask(find, open_rgb(path)).any()]
        shown = f"{len(on_photos)} of {len(photos)} {' '.join(on_photos)}" if photos else "-"
        where = f" ({', '.join(sorted(alarms))})" if alarms else ""
        cost = 1000 * spent / count
        lines.append(f"| {name} | {hits / count:.1%} | {len(alarms) / count:.1%}{where} | {shown} | {cost:.0f} |")
    lines += ["", "## Filling: dB nearer to the true picture than untouched, over the damaged pixels", ""]
    lines += ["| damage, mask, method | pictures | mean | median | worst tenth | better by 6 dB |", "|" + " --- |" * 6]
    for name, values in gains.items():
        low, share = np.percentile(values, 10), np.mean(np.array(values) >= 6)
        lines.append(
            f"| {name} | {len(values)} | {np.mean(values):.1f} | {np.median(values):.1f} | {low:.1f} | {share:.0%} |"
        )
    return [*lines, ""]


def sure_mask(find: Callable, picture: np.ndarray) -> np.ndarray:
    """Return where a finder is sure, bool (height, width)."""
    sure = [each.mask for each in find(picture) if each.confidence >= SURE]
    return np.any(sure, axis=0) if sure else np.zeros(picture.shape[:2], bool)


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="pictures for each table (default 100)")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side (default 512)")
    parser.add_argument("--photos", type=Path, help="a folder of photos without overlays")
    parser.add_argument("--write", action="store_true", help="also write a dated file into benchmarks/results/")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    photos = sorted(p for p in options.photos.iterdir() if p.suffix.lower() in SUFFIXES) if options.photos else []
    lines = [f"# Curate on drawn truth, {date.today()}", ""]
    lines += subject_table(options.count, options.size)
    lines += overlay_table(options.count, options.size, photos)
    print("\n".join(lines))
    if options.write:
        target = RESULTS / f"curate-quality-{date.today()}.md"
        target.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
