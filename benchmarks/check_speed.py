"""Measure how long ``check`` takes, what a second run takes, and how much memory.

    python benchmarks/check_speed.py                      # 400 pictures of 1 megapixel, then one huge file each
    python benchmarks/check_speed.py --pictures 10000 --side 256     # for the memory; small files, so that it ends
    python benchmarks/check_speed.py --write

Half of the pictures are drawn items before drawn backgrounds, half are textures; both are enlarged and given a
camera's grain, and every second one is a JPEG. They are made in a temporary folder and lie there after that with
``--keep FOLDER``. Each run is a process of its own, as a user's is; its peak is that of resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import psutil
from PIL import Image

from lorasmith.starter.renderer import render
from lorasmith.starter.textures import dead_leaves, procedural

RESULTS = Path(__file__).parent / "results"
FIRST_SEED = 900_000
DISTINCT = 400  # pictures that are drawn; of more, the rest are these with other grain, turned and tinted
HUGE = 10_000  # pixels of a side: 100 megapixels
CAMERA, LARGEST = 4900, 6745  # pixels of a side: 24 megapixels, and as many as are read of a PNG


@dataclass(frozen=True)
class Taken:
    """What one run took: seconds on the clock, seconds of all cores, peak bytes of memory."""

    seconds: float
    cpu: float
    peak: int
    findings: int


def picture(index: int, side: int) -> np.ndarray:
    """Return a picture, uint8 RGB (side, side, 3)."""
    rng = np.random.default_rng(FIRST_SEED + index)
    seed, drawn = FIRST_SEED + index % DISTINCT, min(512, side)
    if index % 2:
        image = (dead_leaves if index % 4 == 1 else procedural)(seed, drawn // 2)
    else:
        image = render(seed, size=drawn).image
    if index >= DISTINCT:
        image = np.rot90(image, int(rng.integers(4))) * rng.uniform(0.7, 1, 3)
    large = cv2.resize(np.ascontiguousarray(image, dtype=np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 3, (side, side, 1))
    return np.clip(large + grain, 0, 255).astype(np.uint8)


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Write pictures, two of four as JPEG, one of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        name = folder / f"{index:05d}.{'jpg' if index // 2 % 2 else 'png'}"
        if not name.exists():
            Image.fromarray(picture(index, side)).save(name, quality=92, compress_level=4)


def huge_jpeg(path: Path) -> None:
    """Write a true JPEG of 100 megapixels."""
    small = np.random.default_rng(FIRST_SEED).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(cv2.resize(small, (HUGE, HUGE), interpolation=cv2.INTER_CUBIC)).save(path, quality=90)


def large_png(path: Path, side: int) -> None:
    """Write a true PNG, which no decoder can read at a smaller scale."""
    small = np.random.default_rng(FIRST_SEED).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)).save(path, compress_level=1)


def damaged_png(path: Path) -> None:
    """Write a PNG of which the last pixels' checksum is wrong."""
    large_png(path, LARGEST)
    data = bytearray(path.read_bytes())
    data[-16] ^= 1  # a byte of the checksum before the end
    path.write_bytes(data)


def bomb(path: Path) -> None:
    """Write a PNG whose header says 10 gigapixels, with few bytes behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def run(folder: Path, out: Path, cache: Path) -> Taken:
    """Check a folder in a process of its own."""
    command = [sys.executable, "-m", "lorasmith", "check", str(folder), "--out", str(out)]
    start, peak, cpu = time.perf_counter(), 0, 0.0
    environment = {**os.environ, "LORASMITH_CACHE": str(cache)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)  # looking takes some 5 ms of a core, which the run shall have
                break
            try:
                watched = psutil.Process(process.pid)
                family = [watched, *watched.children(recursive=True)]
                peak = max(peak, sum(each.memory_info().rss for each in family))
                ended = watched.cpu_times()  # of workers that have ended, where the system tells
                spent = [each.cpu_times() for each in family]
                own = sum(times.user + times.system for times in spent)
                cpu = max(cpu, own + getattr(ended, "children_user", 0) + getattr(ended, "children_system", 0))
            except psutil.Error:
                pass
        seconds = time.perf_counter() - start
        said = process.stderr.read().decode(errors="replace") if process.stderr else ""
    if process.returncode not in (0, 1):
        raise SystemExit(f"check ended with {process.returncode}: {said[-2000:]}")
    report = json.loads((out / "findings.json").read_text(encoding="utf-8"))
    return Taken(seconds, cpu, peak, len(report["findings"]))


@contextmanager
def place(kept: Path | None) -> Iterator[Path]:
    """Give a folder, a temporary one unless one is named."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="check-speed-") as folder:
        yield Path(folder)


def main() -> None:
    """Measure, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400, help="how many (default 400)")
    parser.add_argument("--side", type=int, default=1000, help="pixels of their side (default 1000: 1 megapixel)")
    parser.add_argument("--keep", type=Path, help="make the pictures here, or use those that are here, and leave them")
    parser.add_argument("--no-huge", action="store_true", help="leave out the huge files")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/check-speed.md")
    options = parser.parse_args()
    rows: list[tuple[str, Taken]] = []
    with place(options.keep) as top, tempfile.TemporaryDirectory(prefix="check-speed-") as scratch:
        work = Path(scratch)

        def measure(what: str, folder: Path, cache: str) -> None:
            rows.append((what, run(folder, work / "out", work / cache)))
            print(line(*rows[-1]), flush=True)

        folder = top / f"{options.pictures}x{options.side}"
        make_pictures(folder, options.pictures, options.side)
        what = f"{options.pictures:,} pictures of {options.side} x {options.side}"
        measure(f"{what}, first run", folder, "cache")
        measure(f"{what}, second run", folder, "cache")
        huge: dict[str, tuple[str, Callable[[Path], None]]] = {
            "nothing.png": ("an empty file, to know what starting takes", Path.touch),
            "huge.jpg": ("one JPEG of 100 megapixels", huge_jpeg),
            "camera.png": ("one PNG of 24 megapixels", partial(large_png, side=CAMERA)),
            "largest.png": ("one PNG of 45 megapixels", partial(large_png, side=LARGEST)),
            "damaged.png": ("one PNG of 45 megapixels, damaged at its end", damaged_png),
            "huge.png": ("one PNG of 100 megapixels, more than is read", partial(large_png, side=HUGE)),
            "bomb.png": ("one PNG that says it has 10,000 megapixels", bomb),
        }
        for name, (about, make) in {} if options.no_huge else huge.items():
            alone = work / f"only-{name}"
            alone.mkdir()
            make(alone / name)
            measure(about, alone, f"cache-{name}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"# How fast check is, {date.today()}",
        "",
        f"`python {' '.join([Path('benchmarks', Path(__file__).name).as_posix(), *told(sys.argv[1:])])}` on {cores} "
        f"cores ({platform.processor() or platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}, OpenCV {cv2.__version__}. Starting Python is "
        "counted; the pictures are made before.",
        "",
        "| | seconds | seconds of all cores | peak memory, MB | findings |",
        "|---|---|---|---|---|",
        *(line(*row) for row in rows),
    ]
    print("\n".join(["", *lines]))
    if options.write:
        target = RESULTS / "check-speed.md"
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def line(what: str, taken: Taken) -> str:
    """Return a row of the table."""
    return f"| {what} | {taken.seconds:.1f} | {taken.cpu:.1f} | {taken.peak / 1e6:.0f} | {taken.findings} |"


def told(arguments: list[str]) -> list[str]:
    """Return the arguments without the names of this machine's folders."""
    return [each for i, each in enumerate(arguments) if each != "--keep" and arguments[i - 1 : i] != ["--keep"]]


if __name__ == "__main__":
    main()
