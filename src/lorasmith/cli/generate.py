"""``lorasmith generate``: pictures from a base and LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorasmith.cli.options import load, parse_lora, picture_options, read_prompts


@click.command("generate", short_help="Make pictures from a base and LoRAs.")
@click.option("--prompt", "prompts", multiple=True, help="What to draw; repeatable.")
@click.option("--prompts", "file", type=click.Path(path_type=Path), help="Text file with one prompt a line.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]", help="LoRA to draw with; repeatable.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Pictures for each prompt.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the pictures.")
@click.option(
    "--pattern",
    default="{index:05d}-{seed}",
    show_default=True,
    help="File names; the fields are index, seed, steps, guidance, sampler and prompt.",
)
@click.option("--captions", is_flag=True, help="Also write each prompt into a .txt file beside its picture.")
@picture_options
def command(
    prompts: tuple[str, ...],
    file: Path | None,
    loras: tuple[str, ...],
    count: int,
    out: Path,
    pattern: str,
    captions: bool,
    base: str,
    vae: str | None,
    weights: Any,
    negative: str,
    width: int | None,
    height: int | None,
    steps: int,
    guidance: float,
    sampler: str,
    seed: int,
    batch: int,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Draw pictures into a folder, as PNG files that say how they were made. Nothing is overwritten.

    The pictures of one prompt have the seeds SEED, SEED+1, ... A picture depends on its own seed only, not on the
    batch, and the same command gives the same pictures.

    \b
    Examples:
      lorasmith generate --prompt "a red axe on a wooden table" --out pictures
      lorasmith generate --lora runs/axe-001/lora.safetensors:0.8 --prompt "an axe" --count 8 --out pictures
      lorasmith generate --base models/stable-diffusion-v1-5 --prompts prompts.txt --sampler euler-a --out pictures
      lorasmith generate --prompt "a sword" --prompt "a red hammer" --count 8 --captions --out kept
    """
    texts = read_prompts(prompts, file)
    named = [parse_lora(text) for text in loras]

    from lorasmith.cli.screen import show
    from lorasmith.generate.generate import generate, use_lora
    from lorasmith.generate.sample import Request

    used = [use_lora(path, weight) for path, weight in named]
    requests = [
        Request(text, negative, seed + number, steps, guidance, sampler, width, height)
        for text in texts
        for number in range(count)
    ]
    sd = load(base, device, precision, vae=vae, weights=weights)
    show(generate(sd, requests, out, pattern=pattern, loras=used, batch=batch, captions=captions), as_json=as_json)
