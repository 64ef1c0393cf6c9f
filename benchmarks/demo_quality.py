"""Score the demo's LoRA with the judge, 50 pictures for each line, and what it must not break.

    python benchmarks/demo_quality.py demo/run/lora.safetensors --write benchmarks/results/demo-quality.md

One table, of base and LoRA: the four weapons with blossoms by the demo's prompts, the same in few words, and items the
LoRA was not trained on, asked for without blossom words.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np

from lorasmith.evaluate.scores import Rate, rate
from lorasmith.generate.generate import fused, use_lora
from lorasmith.generate.sample import Request, sample
from lorasmith.model.judge import Judge, load_judge
from lorasmith.model.stable_diffusion import StableDiffusion, load_base, pick_device, pick_dtype
from lorasmith.starter.demo import GUIDANCE, PHRASE, weapon_prompt
from lorasmith.starter.paths import judge_folder
from lorasmith.starter.renderer import WEAPONS, article
from lorasmith.starter.verdict import verdict

UNTOUCHED = ("sword", "hammer", "bow", "shield")


def scores(sd: StableDiffusion, judge: Judge, prompt: str, kind: str, count: int) -> tuple[Rate, Rate]:
    """Draw ``count`` pictures of a prompt and return how often the kind is right and how often there are blossoms."""
    requests = [Request(prompt, seed=20_000 + i, guidance=GUIDANCE) for i in range(count)]
    pictures = np.stack([p for _, p in sorted(sample(sd, requests, batch=16), key=lambda pair: pair[0])])
    seen = verdict(judge, pictures, [kind] * count)
    return rate(seen.right_kinds([kind] * count)), rate(seen.blossoms)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--count", type=int, default=50, help="pictures for each line (default 50)")
    parser.add_argument("--write", type=Path, help="also write the table to this markdown file")
    options = parser.parse_args()
    device = pick_device()
    sd = load_base("starter", device=device, dtype=pick_dtype("auto", device))
    judge = load_judge(judge_folder())
    asked = [(k, weapon_prompt(k)) for k in WEAPONS] + [(k, f"{article(k)} {PHRASE}") for k in WEAPONS]
    asked += [(k, article(k)) for k in UNTOUCHED]
    base = {prompt: scores(sd, judge, prompt, kind, options.count) for kind, prompt in asked}
    with fused(sd, [use_lora(options.lora)]):
        tuned = {prompt: scores(sd, judge, prompt, kind, options.count) for kind, prompt in asked}
    lines = [
        f"Judged {date.today()}: {options.count} pictures a line, 25 steps of dpm++2m, guidance {GUIDANCE:g}.",
        "",
        "| prompt | right kind, base | right kind, LoRA | blossom, base | blossom, LoRA |",
        "| --- | --- | --- | --- | --- |",
    ]
    for _, prompt in asked:
        (kind_base, blossom_base), (kind_lora, blossom_lora) = base[prompt], tuned[prompt]
        lines.append(f"| {prompt} | {kind_base} | {kind_lora} | {blossom_base} | {blossom_lora} |")
    print("\n".join(lines))
    if options.write:
        options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
