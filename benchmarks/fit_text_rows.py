"""Fit the weights by which rows of pieces are judged to be text, and write them into the package.

    python benchmarks/fit_text_rows.py --count 700

Pictures: the starter's renderer, dead leaves and procedural textures, each once as it is and most of them with drawn
text. Seeds from 300,000 on: none is used by ``curate_quality.py``. Prints what five-fold cross-validation by picture
says for several thresholds. The same arguments give the same file on the same machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from drawn_overlays import add_text
from lorasmith.dataset import overlay_text
from lorasmith.starter.renderer import render
from lorasmith.starter.textures import dead_leaves, procedural

TARGET = Path(overlay_text.__file__).with_name("overlay_text_weights.py")
RIDGE = 3.0
FOLDS = 5
SIDE = 512


def rows(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (rows, features), truth (rows,) and the picture's number (rows,)."""
    features: list[tuple[float, ...]] = []
    truth: list[int] = []
    number: list[int] = []
    for index in range(count):
        rng = np.random.default_rng(10_000 + index)
        kind = index % 5
        if kind < 3:
            picture = render(300_000 + index, size=SIDE).image
        else:
            picture = (dead_leaves if kind == 3 else procedural)(index, SIDE)
        found = [(row.features, 0) for row in overlay_text.find_rows(picture)]
        if kind != 1:
            marked, mask = add_text(rng, picture)
            for row in overlay_text.find_rows(marked):
                share = float((row.mask & mask).sum() / row.mask.sum())
                if not 0.3 < share < 0.6:  # neither the one nor the other
                    found.append((row.features, int(share >= 0.6)))
        features += [each[0] for each in found]
        truth += [each[1] for each in found]
        number += [index] * len(found)
    return np.array(features), np.array(truth), np.array(number)


def expanded(features: np.ndarray, means: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Return scaled features, their products in pairs, and a constant: what ``likelihood`` computes for one row."""
    scaled = np.clip((features - means) / spreads, -4, 4)
    first, second = np.triu_indices(scaled.shape[1])
    return np.hstack([scaled, scaled[:, first] * scaled[:, second], np.ones((len(scaled), 1))])


def fit(inputs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the weights of a ridge logistic regression, by Newton's method."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(60):
        p = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        curvature = (inputs * (p * (1 - p) + 1e-6)[:, None]).T @ inputs + RIDGE * np.eye(len(weights))
        weights -= np.linalg.solve(curvature, inputs.T @ (p - truth) + RIDGE * weights)
    return weights


def table(name: str, values: np.ndarray) -> str:
    """Return a tuple of numbers as Python source."""
    lines, line = [f"{name} = ("], "   "
    for value in values:
        word = f" {value:.5g},"
        if len(line) + len(word) > 118:
            lines.append(line)
            line = "   "
        line += word
    return "\n".join([*lines, line, ")  # fmt: skip"])


def main() -> None:
    """Fit, cross-validate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=700, help="pictures (default 700)")
    parser.add_argument("--sure", type=float, default=2.0, help="logit that becomes a confidence of 0.5 (default 2)")
    options = parser.parse_args()
    features, truth, number = rows(options.count)
    means, spreads = features.mean(0), features.std(0)
    inputs = expanded(features, means, spreads)
    logits = np.zeros(len(truth))
    for fold in range(FOLDS):
        held = (number // 7) % FOLDS == fold
        logits[held] = inputs[held] @ fit(inputs[~held], truth[~held])
    with_text = set(number[truth == 1])
    for level in (0.0, 1.0, 2.0, 2.5, 3.0, 4.0):
        wrong = len(set(number[(logits > level) & (truth == 0)])) / options.count
        right = len(set(number[(logits > level) & (truth == 1)])) / len(with_text)
        print(f"logit > {level:g}: pictures with a wrong row {wrong:.3f}, texts with a row found {right:.3f}")
    words = f"drawn pictures with and without drawn text: {len(truth):,} rows, {truth.mean():.1%} of them text."
    TARGET.write_text(
        '"""The weights by which ``overlay_text`` judges a row of pieces; made by ``benchmarks/fit_text_rows.py``.\n\n'
        "A logistic regression over the scaled features, their products in pairs, and a constant, fitted to rows in\n"
        f'{words}\n"""\n\nfrom __future__ import annotations\n\n'
        f"SURE = {options.sure}  # of the logit, subtracted so that half is where false alarms become rare\n"
        + "\n".join(table(n, v) for n, v in (("MEANS", means), ("SPREADS", spreads), ("WEIGHTS", fit(inputs, truth))))
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
