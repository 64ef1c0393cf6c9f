"""Measure how far a training that was stopped and resumed ends from one that was not.

    python benchmarks/resume_difference.py                    # on a CPU, with one thread and with all
    python benchmarks/resume_difference.py --device cuda
    python benchmarks/resume_difference.py --device cuda --deterministic
    python benchmarks/resume_difference.py --write

The starter is trained on 24 drawn pictures: twice without a stop, and once stopped with SIGTERM in the middle and gone
on with by a new process. Each line is for another number of threads. A GPU may add in another order each time, and the
difference of the two trainings without a stop says how much of it has nothing to do with resuming. bf16 is left out
where the device only imitates it. POSIX only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from lorasmith.events import CheckpointSaved
from lorasmith.model.formats import read_lora
from lorasmith.model.stable_diffusion import pick_device, pick_dtype
from lorasmith.starter.pictures import write_pictures

ROOT = Path(__file__).parents[1]
SEED = 910_000
SETTINGS = {"train.warmup": 4, "train.ema": 0.9, "samples.steps": 2, "data.flip": True}


def train(*words: str, threads: int, stop_at: int | None = None) -> None:
    """Run ``lorasmith train`` in a process of its own, told to stop once the checkpoint of a step is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "lorasmith", "train", "--json", *words]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
        assert child.stdout
        for line in child.stdout:
            event = json.loads(line)
            if event["event"] == CheckpointSaved.__name__ and event["step"] == stop_at:
                child.terminate()
        code = child.wait()
        if code != (143 if stop_at else 0):
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {code}:\n{said.read()}")


def difference(one: Path, other: Path) -> tuple[float, float]:
    """Return the largest difference of a weight, and that of all of them relative to their norm."""
    a, b = read_lora(one / "lora.safetensors").tensors, read_lora(other / "lora.safetensors").tensors
    apart = [a[name].double() - b[name].double() for name in a]
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in a.values()))
    return max(float(t.abs().max()) for t in apart), math.sqrt(sum(float(t.square().sum()) for t in apart)) / norm


def measure(options: argparse.Namespace, precision: str, threads: int) -> str:
    """Return a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = write_pictures(place / "pictures", ("axe", "spear"), 12, seed=SEED)
        half = options.steps // 2
        settings = {
            **SETTINGS, "train.device": options.device, "train.precision": precision, "train.steps": options.steps,
            "train.save_every": half, "train.deterministic": options.deterministic,
        }  # fmt: skip
        sets = [f"--set={key}={str(value).lower()}" for key, value in settings.items()]
        for name, stop_at in (("whole", None), ("again", None), ("resumed", half)):
            train(*map(str, data), "--out", str(place / name), *sets, threads=threads, stop_at=stop_at)
        train("--resume", str(place / "resumed"), threads=threads)
        figures = (*difference(place / "whole", place / "resumed"), *difference(place / "whole", place / "again"))
    on = options.device + (", deterministic" if options.deterministic else "")
    what = f"{on}, {precision}" + (f", {threads} thread{'s' * (threads != 1)}" if options.device == "cpu" else "")
    return f"| {what} | " + " | ".join("0 (the same bytes)" if f == 0 else f"{f:.2g}" for f in figures) + " |"


def precisions(device: str) -> Sequence[str]:
    """Return those that the device computes in without imitating them."""
    native = pick_dtype("auto", pick_device(device))
    return ("fp32", "bf16") if native == torch.bfloat16 else ("fp32", "fp16") if native == torch.float16 else ("fp32",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", help="on a CPU  [default: 1, and one for each core]")
    parser.add_argument("--deterministic", action="store_true", help="with train.deterministic, which a GPU needs")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results/")
    options = parser.parse_args()
    threads = options.threads or sorted({1, os.cpu_count() or 1}) if options.device == "cpu" else [1]
    rows = [measure(options, kind, n) for kind in precisions(options.device) for n in threads]
    machine = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.platform()
    said = " ".join(word for word in sys.argv[1:] if word != "--write")
    text = "\n".join([
        f"# Stopped and resumed, {date.today():%Y-%m-%d}", "",
        f"`python benchmarks/resume_difference.py {said}`".replace(" `", "`") + f", {options.steps} steps, "
        f"torch {torch.__version__}, {machine}.",
        "", "| | largest difference of a weight | of all, to their norm | the same of two without a stop | |",
        "|---|---|---|---|---|", *rows, "",
    ])  # fmt: skip
    print(text)
    if options.write:
        results = ROOT / "benchmarks" / "results" / f"resume-difference-{date.today():%Y-%m-%d}.md"
        results.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
