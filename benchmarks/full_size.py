"""Stable Diffusion v1.5 at its true size, with random weights: the whole path from each form of the base, measured.

Writes a base of the true size (UNet 859,520,964 parameters, VAE, CLIP-L) as a diffusers folder and as one .ckpt of
the original layout with EMA and non-EMA weights, like v1-5-pruned.ckpt (7.7 GB, pickled by torch), then runs
lorasmith's own commands on each: inspect, train 2 steps at 256 px, generate 2 steps with the LoRA, convert, and
inspect what came out. Prints the time and the peak memory of each.

    python benchmarks/full_size.py --work /tmp/full-size
    python benchmarks/full_size.py --work /tmp/full-size --write

Needs 16 GB of disk and, for writing the .ckpt, 9 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch

from lorasmith.files import write_json
from lorasmith.model.assemble import build
from lorasmith.model.base_files import PARTS
from lorasmith.model.clip_tokenizer import write_tokenizer
from lorasmith.model.convert import convert
from lorasmith.model.find_base import find_base
from lorasmith.model.original_layout import SD1_SETTINGS, ema_name
from lorasmith.model.safetensors_writer import Planned, write_safetensors
from lorasmith.starter.pictures import write_pictures

RESULTS = Path(__file__).parent / "results"
UNET_PARAMETERS = 859_520_964
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "vae": {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "sample_size": 512,
        "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    "text_encoder": {
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    },
}  # fmt: skip
NAMES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass(frozen=True)
class Measured:
    """One command: what it took."""

    base: str
    what: str
    seconds: float
    peak_gib: float


def random_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a weight that keeps activations near 1: ones for norms, zeros for biases, else normal over the fan-in."""
    if len(shape) == 1:
        return torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
    generator = torch.Generator().manual_seed(int.from_bytes(name.encode()[-7:], "little"))
    return torch.randn(shape, generator=generator) * torch.Size(shape[1:]).numel() ** -0.5


def write_folder(out: Path) -> None:
    """Write the base as a diffusers folder in float32, tensor by tensor."""
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    for part in PARTS:
        module = build(part, CONFIGS[part])
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        if part == "unet":
            count = sum(p.numel() for p in module.parameters())
            assert count == UNET_PARAMETERS, count
        (out / part).mkdir(parents=True)
        write_json(out / part / "config.json", {**CONFIGS[part], "_class_name": classes[part]})
        plan = {n: Planned(torch.float32, s, lambda n=n, s=s: random_weight(n, s)) for n, s in shapes.items()}  # type: ignore[misc]
        for _ in write_safetensors(out / part / f"{NAMES[part]}.safetensors", plan, {"format": "pt"}):
            pass
    write_tokenizer(out / "tokenizer")
    (out / "scheduler").mkdir()
    write_json(
        out / "scheduler" / "scheduler_config.json", {**SD1_SETTINGS["scheduler"], "_class_name": "PNDMScheduler"}
    )
    write_json(out / "model_index.json", {"_class_name": "StableDiffusionPipeline"})


def write_checkpoint(folder: Path, out: Path) -> None:
    """Write the base as the published file is: torch.save of a training's state, EMA and non-EMA weights together."""
    from safetensors.torch import load_file

    single = out.with_suffix(".safetensors")
    for _ in convert(find_base(str(folder)), single):
        pass
    state: dict[str, Any] = load_file(single)
    single.unlink()
    unet = [name for name in state if name.startswith("model.diffusion_model.")]
    state |= {ema_name(name): state[name] * 0.999 for name in unet}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1, dtype=torch.int32)}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save({"state_dict": state, "epoch": 0, "global_step": 840000, "callbacks": {}}, out)


def measured(base: str, what: str, *arguments: str) -> Measured:
    """Run one lorasmith command in a process of its own, and watch its memory."""
    print(f"$ lorasmith {' '.join(arguments)}", flush=True)
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lorasmith", *arguments], env={**os.environ, "COLUMNS": "100"})
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            try:
                peak[0] = max(peak[0], psutil.Process(process.pid).memory_info().rss)
            except psutil.Error:
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise SystemExit(f"lorasmith {what} ended with {code}")
    result = Measured(base, what, time.perf_counter() - begun, peak[0] / 2**30)
    print(f"  {result.seconds:.0f} s, peak {result.peak_gib:.2f} GiB\n", flush=True)
    return result


def whole_path(name: str, base: Path, pictures: list[Path], work: Path) -> Iterator[Measured]:
    """Run every command on one form of the base."""
    run, out = work / f"run-{name}", work / f"pictures-{name}"
    lora = str(run / "lora.safetensors")
    yield measured(name, "inspect, hashes included", "inspect", str(base))
    settings = {
        "train.steps": 2, "train.batch": 1, "train.log_every": 1, "data.resolution": 256, "data.validation": 0.0,
        "samples.steps": 2, "samples.prompts": '["an axe"]', "train.warmup": 0,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    train = ["train", *map(str, pictures), "--base", str(base), "--out", str(run), *sets]
    yield measured(name, "train 2 steps at 256 px, 2 sample rounds", *train)
    draw = ["--width", "256", "--height", "256", "--steps", "2", "--prompt", "an axe"]
    yield measured(
        name, "generate 2 steps at 256 px with the LoRA", "generate", "--base", str(base), "--lora", lora, *draw,
        "--out", str(out),
    )  # fmt: skip
    yield measured(name, "inspect the LoRA", "inspect", lora)
    half = work / f"{name}-fp16.safetensors"
    yield measured(name, "convert to one fp16 file", "convert", str(base), str(half), "--dtype", "fp16")
    yield measured(
        name, "generate from that file", "generate", "--base", str(half), "--lora", lora, *draw, "--out", str(out)
    )
    half.unlink()


def markdown(results: list[Measured], sizes: dict[str, float], seconds: float) -> str:
    """Return the table as a page."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    processor = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())
    head = [
        f"# SD v1.5 at its true size, {date.today()}",
        "",
        f"Random weights, UNet {UNET_PARAMETERS:,} parameters. {processor}, {torch.get_num_threads()} thread(s), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, torch {torch.__version__}. Peak memory is the process's "
        f"resident memory, sampled every 50 ms. The whole took {seconds / 60:.0f} min.",
        "",
        *(f"- {name}: {size:.2f} GB" for name, size in sizes.items()),
        "",
        "| base | command | seconds | peak GiB |",
        "|---|---|---|---|",
    ]
    return (
        "\n".join([*head, *(f"| {r.base} | {r.what} | {r.seconds:.0f} | {r.peak_gib:.2f} |" for r in results)]) + "\n"
    )


def main() -> None:
    """Write the bases, run the commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the bases and runs (16 GB)")
    parser.add_argument("--keep", action="store_true", help="leave the bases there, and use them if they are there")
    parser.add_argument("--write", action="store_true", help=f"also write the table to {RESULTS}")
    options = parser.parse_args()
    begun = time.perf_counter()
    work: Path = options.work
    folder, checkpoint = work / "sd15", work / "sd15.ckpt"
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("LORASMITH_CACHE", str(work / "cache"))
    for target, write in (
        (folder, lambda: write_folder(folder)),
        (checkpoint, lambda: write_checkpoint(folder, checkpoint)),
    ):
        if not target.exists():
            print(f"writing {target}", flush=True)
            write()
    for old in (*work.glob("run-*"), *work.glob("pictures-*"), *work.glob("data*")):
        shutil.rmtree(old)
    pictures = write_pictures(work / "data", ("axe", "spear"), 2, seed=1)
    sizes = {"sd15.ckpt": checkpoint.stat().st_size / 1e9}
    sizes["sd15 (folder)"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e9
    results = []
    for name, base in (("folder", folder), ("ckpt", checkpoint)):
        results += list(whole_path(name, base, list(pictures), work))
    table = markdown(results, sizes, time.perf_counter() - begun)
    print(table)
    print(json.dumps([vars(r) for r in results]))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"full_size-{date.today()}.md").write_text(table, encoding="utf-8")
    if not options.keep:
        shutil.rmtree(folder)
        checkpoint.unlink()


if __name__ == "__main__":
    main()
