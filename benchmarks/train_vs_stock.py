"""Train the same LoRA the stock way and lorasmith's way, and compare speed and memory.

Both train the same adapter (same rank, alpha and layers) on the same pictures at the same size for the same number of
steps of four pictures. The stock way is that of ``lorasmith.bench.reference``: the VAE and the text encoder run for
every picture in every step, batch 1 with 4 accumulation steps, gradient checkpointing; it is what `--preset reference`
stands for. lorasmith's way is its default: pictures and captions encoded once, batch 4.

    python benchmarks/train_vs_stock.py
    python benchmarks/train_vs_stock.py --base models/stable-diffusion-v1-5 --steps 100 --data pictures/axe --write

Each way runs in a process of its own, one after the other. Loading the base is not counted in either.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lorasmith.bench.compare import describe_machine
from lorasmith.errors import LorasmithError
from lorasmith.starter.pictures import write_pictures
from lorasmith.starter.renderer import WEAPONS

RESULTS = Path(__file__).parent / "results"
PICTURES_PER_WEAPON = 25
PICTURES_PER_STEP = 4
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Job:
    """What both ways train. ``warmup`` steps of ``steps`` are left out of the steady speed."""

    base: str
    folders: tuple[Path, ...]
    steps: int
    warmup: int
    rank: int
    device: str
    work: Path


@dataclass(frozen=True)
class Result:
    """What one way took.

    Args:
        way: its name.
        precision: the number format of the frozen base.
        parameters: trained numbers.
        steady: pictures per second after the warm-up.
        with_caching: pictures per second over all steps and the encoding before them, if there is any.
        caching_seconds: what that encoding took.
        peak_mib: peak memory, of the GPU where there is one, else of the process.
    """

    way: str
    precision: str
    parameters: int
    steady: float
    with_caching: float
    caching_seconds: float
    peak_mib: float

    def over(self, steps: int) -> float:
        """Return the pictures per second of ``steps`` steps, reckoned from the steady speed and the encoding."""
        pictures = steps * PICTURES_PER_STEP
        return pictures / (self.caching_seconds + pictures / self.steady)


def train_stock(job: Job) -> Result:
    """Train the reference way of ``lorasmith bench``, on the job's pictures."""
    from lorasmith.bench.measure import clock, peak_mib
    from lorasmith.bench.reference import StockTraining

    training = StockTraining(
        job.base, job.folders, size=None, accumulation=PICTURES_PER_STEP, rank=job.rank, device=job.device
    )
    training.attach()
    ends = [clock(training.device)]
    for _ in range(job.steps):
        training.step()
        ends.append(clock(training.device))
    seconds = ends[-1] - ends[0]
    steady = (job.steps - job.warmup) * PICTURES_PER_STEP / (ends[-1] - ends[job.warmup])
    count = sum(p.numel() for p in training.parameters)
    precision = str(training.dtype).removeprefix("torch.")
    overall, peak = job.steps * PICTURES_PER_STEP / seconds, peak_mib(training.device)
    return Result("stock", precision, count, steady, overall, 0.0, peak)


def train_lorasmith(job: Job) -> Result:
    """Train with lorasmith's defaults, and tell the time of each event."""
    os.environ["LORASMITH_CACHE"] = str(job.work / "cache")  # empty, so that encoding is measured too
    from safetensors.torch import load_file

    from lorasmith.bench.measure import peak_mib
    from lorasmith.events import Finished, Progress, StepDone
    from lorasmith.model.stable_diffusion import pick_device, pick_dtype
    from lorasmith.recipe.load import load_recipe
    from lorasmith.run import Run
    from lorasmith.train.loop import train

    settings = {
        "train.steps": job.steps,
        "train.save_every": job.steps,
        "train.log_every": 1,
        "train.learning_rate": LEARNING_RATE,
        "train.device": job.device,
        "lora.rank": job.rank,
        "data.validation": 0.0,
        "samples.steps": 1,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    recipe = load_recipe(None, folders=job.folders, base=job.base, overrides=overrides)
    steps: list[float] = []
    encoding_begun = caching = 0.0
    files: tuple[Path, ...] = ()
    with Run.create(job.work / "run", recipe) as run:
        before = time.perf_counter()
        for event in train(recipe, run):
            now = time.perf_counter()
            if isinstance(event, Progress) and event.stage.startswith("encoding"):
                encoding_begun = encoding_begun or now
            elif encoding_begun and not caching:  # the captions, which have no bar, are encoded by now too
                caching = now - encoding_begun
            if isinstance(event, StepDone):
                steps.append(now - before)
            elif isinstance(event, Finished):
                files = event.files
            before = now
    count = sum(t.numel() for t in load_file(files[0]).values())
    device = pick_device(job.device)
    precision = str(pick_dtype(recipe.train.precision, device)).removeprefix("torch.")
    steady = (job.steps - job.warmup) * PICTURES_PER_STEP / sum(steps[job.warmup :])
    overall = job.steps * PICTURES_PER_STEP / (caching + sum(steps))
    return Result("lorasmith", precision, count, steady, overall, caching, peak_mib(device))


def main() -> None:
    """Run both ways and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="starter", help="the base, as for lorasmith train")
    parser.add_argument("--data", type=Path, nargs="+", help="folders with metadata.jsonl; else pictures are rendered")
    parser.add_argument("--steps", type=int, default=60, help="steps of 4 pictures; the first sixth is the warm-up")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", help="cpu or cuda; else the GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--write", action="store_true", help=f"also write the table to {RESULTS}")
    options = parser.parse_args()
    if options.steps < 6:
        parser.error("--steps must be at least 6")
    with tempfile.TemporaryDirectory(prefix="lorasmith-benchmark-") as work:
        folders = tuple(options.data or write_pictures(Path(work), WEAPONS, PICTURES_PER_WEAPON, seed=1))
        device = options.device or in_child(usable_device)
        job = Job(options.base, folders, options.steps, options.steps // 6, options.rank, device, Path(work))
        try:
            stock, ours = (in_child(way, job) for way in (train_stock, train_lorasmith))
        except LorasmithError as error:
            raise SystemExit(str(error)) from None
    if stock.parameters != ours.parameters:
        raise SystemExit(f"Not the same adapter: {stock.parameters} trained numbers and {ours.parameters}.")
    machine = in_child(describe_machine, device)
    ratio = ours.steady / stock.steady
    figures = {"machine": machine, "base": job.base, "steps": job.steps, "ratio_steady": ratio}
    figures |= {"ratio_with_caching": ours.with_caching / stock.with_caching, "results": [asdict(stock), asdict(ours)]}
    table = markdown(job, machine, stock, ours)
    print(json.dumps(figures, indent=2) if options.json else table)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"train_vs_stock-{date.today()}.md").write_text(table, encoding="utf-8")


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what ``work`` returns in a fresh process, so that memory and caches of one way are not the other's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def usable_device() -> str:
    """Return cuda if there is one, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def markdown(job: Job, machine: str, stock: Result, ours: Result) -> str:
    """Return the comparison as a Markdown page."""
    rows = [
        ("pictures/s, steady", f"{stock.steady:.2f}", f"{ours.steady:.2f}", ours.steady / stock.steady),
        (f"pictures/s, encoding included, {job.steps} steps", f"{stock.with_caching:.2f}", f"{ours.with_caching:.2f}",
         ours.with_caching / stock.with_caching),
        ("the same, reckoned for 1,000 steps", f"{stock.over(1000):.2f}", f"{ours.over(1000):.2f}",
         ours.over(1000) / stock.over(1000)),
        ("peak memory, MiB", f"{stock.peak_mib:,.0f}", f"{ours.peak_mib:,.0f}", ours.peak_mib / stock.peak_mib),
        ("encoding once, s", "at every step", f"{ours.caching_seconds:.1f}", None),
        ("base's number format", stock.precision, ours.precision, None),
    ]  # fmt: skip
    lines = [
        f"# Training against the stock way, {date.today()}",
        "",
        f"{job.steps} steps of {PICTURES_PER_STEP} pictures, rank {job.rank}, {ours.parameters:,} trained numbers, "
        f"base {job.base}. {machine}.",
        "",
        "| | stock peft + diffusers | lorasmith | ratio |",
        "|---|---|---|---|",
        *(f"| {name} | {a} | {b} | {f'{ratio:.2f}' if ratio else ''} |" for name, a, b, ratio in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
