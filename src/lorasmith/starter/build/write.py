"""Writes the starter and the judge as Hugging Face folders, and the card beside them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from lorasmith.files import write_json, write_text
from lorasmith.starter.build.job import Job
from lorasmith.starter.build.judge import Student, write_judge
from lorasmith.starter.build.measure import Line
from lorasmith.starter.build.tokenizer import write_tokenizer
from lorasmith.starter.build.unet import SCHEDULE, Denoiser

LIMIT = 16 * 2**20  # bytes in one file


def write_starter(folder: Path, vae: AutoencoderKL, denoiser: Denoiser) -> None:
    """Write a Stable Diffusion pipeline folder in fp16 that stock diffusers loads."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae.half(), text_encoder=denoiser.text_encoder.half(), tokenizer=tokenizer, unet=denoiser.unet.half(),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer")  # save_pretrained adds a second copy in another format
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    _load_as_float32(folder / "text_encoder")
    for part in ("unet", "vae"):  # diffusers notes where it read what is gone on with
        config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        write_json(folder / part / "config.json", {k: v for k, v in config.items() if k != "_name_or_path"})
    _readable(folder)
    vae.float()
    denoiser.float()


def write_judge_folder(folder: Path, student: Student) -> None:
    """Write the judge's folder in fp16."""
    write_judge(student, folder)
    _load_as_float32(folder)
    _readable(folder)


def _load_as_float32(folder: Path) -> None:
    # transformers loads in the dtype the config names; float16 would not fit diffusers' parts, which load as float32.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "dtype": "float32"})


def _readable(folder: Path) -> None:
    # safetensors writes files that only their owner may read.
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            if path.stat().st_size > LIMIT:
                raise ValueError(f"{path} is over {LIMIT} bytes")


def job_facts(jobs: Sequence[Job], start: Path | None) -> list[dict[str, Any]]:
    """Return what the card tells of each trained part; what the models it started from had seen is added."""
    card = start / "card.json" if start else None
    before = json.loads(card.read_text(encoding="utf-8"))["parts"] if card and card.exists() else []
    had = {fact["part"]: fact for fact in before}
    facts = []
    for job in jobs:
        fact: dict[str, Any] = {"part": job.name, "steps": job.steps, "samples": job.samples, "minutes": job.spent / 60}
        for key in ("steps", "samples", "minutes"):
            fact[key] = round(fact[key] + had.get(job.name, {}).get(key, 0), 1)
        facts.append(fact)
    return facts


def hardware(device: torch.device) -> str:
    """Return the processor or GPU in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} CPU cores ({model})"


def _commit() -> str:
    try:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def remember_command(work: Path) -> None:
    """Add this call to the list of the build's commands, which the card shows. Folders lose where they lie."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    with (work / "commands.txt").open("a", encoding="utf-8") as file:
        file.write(" ".join(["python -m lorasmith.starter.build", *words]) + "\n")


def write_card(
    out: Path,
    work: Path,
    lines: Sequence[Line],
    facts: list[dict[str, Any]],
    guidance: float,
    device: torch.device,
) -> None:
    """Write ``card.json`` and ``CARD.md``: how the models were made and what was measured of them."""
    commands = list(dict.fromkeys((work / "commands.txt").read_text(encoding="utf-8").splitlines()))
    card = {
        "made": date.today().isoformat(),
        "commands": commands,
        "commit": _commit(), "hardware": hardware(device), "torch": torch.__version__, "seed": 0, "guidance": guidance,
        "sampler": "dpm++2m, 25 steps", "parts": facts, "measured": [line.to_json() for line in lines],
    }  # fmt: skip
    write_json(out / "card.json", card)
    table = ["| measured | target | found | |", "| --- | --- | --- | --- |"]
    for x in lines:
        found = x.found if "n =" in x.found else f"{x.found} (n = {x.n})"
        table.append(f"| {x.what} | {x.target} | {found} | {'reached' if x.met else '**missed**'} |")
    parts = ["| part | steps | samples | minutes |", "| --- | --- | --- | --- |"]
    parts += [f"| {f['part']} | {f['steps']} | {f['samples']:,} | {f['minutes']} |" for f in facts]
    text = f"""# The starter and the judge

A miniature Stable Diffusion and a small CLIP, made by this project from pictures it draws itself. The starter has
never been shown a blossom, a trident or a whip (its VAE has, so that it can encode them). The intervals are
Wilson's, 95 %.

Made {card["made"]} at commit `{card["commit"]}` on {card["hardware"]}, torch {card["torch"]}, by

{chr(10).join(f"    {command}" for command in commands)}

{chr(10).join(table)}

Pictures of the base: 25 steps of DPM-Solver++ (2M), guidance {guidance:g}, seeds never trained on.

{chr(10).join(parts)}
"""
    write_text(out / "CARD.md", text)
