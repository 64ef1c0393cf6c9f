"""``python -m lorasmith.starter.build --out DIR``: draw, train, measure, write.

The work is kept in DIR/.build, so a build that was stopped, or that is run in chunks, goes on where it was when the
same command is given again. The finished models are DIR/starter and DIR/judge with DIR/CARD.md beside them.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from lorasmith.model.stable_diffusion import load_base
from lorasmith.starter.build.job import Job, Site
from lorasmith.starter.build.judge import Student, as_judge, train_judge
from lorasmith.starter.build.measure import Line, choose_guidance, measure_base, measure_judge, measure_vae
from lorasmith.starter.build.unet import Denoiser, train_unet
from lorasmith.starter.build.vae import train_vae
from lorasmith.starter.build.write import job_facts, remember_command, write_card, write_judge_folder, write_starter

PARTS = ("judge", "vae", "unet")
SHARES = {"judge": 0.2, "vae": 0.2, "unet": 0.6}  # of the minutes


def say(message: str) -> None:
    """Print a line with the time."""
    print(time.strftime("%H:%M:%S"), message, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lorasmith.starter.build", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the models go")
    parser.add_argument(
        "--minutes",
        type=float,
        default=180.0,
        help="of training in all, or of each --part (default 180); measuring is extra",
    )
    parser.add_argument(
        "--chunk", type=float, default=float("inf"), help="stop after so many minutes; run again to go on"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--part", choices=PARTS, action="append", help="train only this part (may be repeated)")
    parser.add_argument("--start", type=Path, help="begin with the models in this folder, such as the ones that ship")
    parser.add_argument("--photos", type=Path, help="a folder of real photos to measure the VAE on as well")
    parser.add_argument("--count", type=int, default=400, help="pictures for each measured line (default 400)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser.add_argument("--measure-only", action="store_true", help="measure and write what has been trained so far")
    return parser.parse_args()


@dataclass
class Build:
    """One build: its options, its clock and its jobs."""

    options: argparse.Namespace
    device: torch.device
    began: float

    @property
    def work(self) -> Path:
        """Where the work is kept between runs."""
        return Path(self.options.out) / ".build"

    def deadline(self, part: str) -> float:
        """Return when ``part`` has to stop in this run; the past where it is not to be trained."""
        if self.options.measure_only or (self.options.part and part not in self.options.part):
            return self.began
        return self.began + float(self.options.chunk) * 60

    def minutes(self, part: str) -> float | None:
        """Return the whole budget of ``part``; None is what it was given in an earlier run."""
        if not self.options.part:
            return float(self.options.minutes) * SHARES[part]
        return float(self.options.minutes) if part in self.options.part else None

    def jobs(self) -> dict[str, Job]:
        """Train what is to be trained. Returns the jobs by part."""
        site = Site(self.work, self.device, self.options.workers, say, self.options.start)
        jobs: dict[str, Job] = {}
        vae = jobs["vae"] = train_vae(site, self.minutes("vae"), self.deadline("vae"))
        vae.use_average()  # which is what ships, so the others are to learn on its latents
        assert isinstance(vae.model, AutoencoderKL)
        jobs["judge"] = train_judge(site, self.minutes("judge"), self.deadline("judge"), vae.model)
        jobs["unet"] = train_unet(site, self.minutes("unet"), self.deadline("unet"), vae.model)
        return jobs


def _measure(build: Build, jobs: dict[str, Job]) -> tuple[list[Line], float]:
    options, out = build.options, Path(build.options.out)
    tokenizer = CLIPTokenizer.from_pretrained(build.work / "tokenizer")
    student = jobs["judge"].model
    assert isinstance(student, Student)
    judge = as_judge(student, tokenizer, build.device)
    dtype = torch.float16 if build.device.type == "cuda" else torch.float32
    sd = load_base(str(out / "starter"), device=build.device, dtype=dtype)
    say("measure: the judge")
    lines = measure_judge(judge, build.work, options.count, options.workers)
    say("measure: the VAE")
    lines += measure_vae(sd, judge, build.work, options.count, options.workers, options.photos)
    say("measure: the base")
    guidance = choose_guidance(sd, judge, say)
    lines += measure_base(sd, judge, guidance, options.count)
    return lines, guidance


def main() -> None:
    """Run the build."""
    options = _arguments()
    build = Build(options, torch.device(options.device), time.monotonic())
    build.work.mkdir(parents=True, exist_ok=True)
    remember_command(build.work)
    jobs = build.jobs()
    unfinished = [name for name, job in jobs.items() if not job.finished]
    if unfinished and not options.measure_only:
        say(f"not finished yet: {', '.join(unfinished)}. Run the same command again to go on.")
        return
    for job in jobs.values():
        job.use_average()
    denoiser, vae = jobs["unet"].model, jobs["vae"].model
    assert isinstance(denoiser, Denoiser)
    assert isinstance(vae, AutoencoderKL)
    write_starter(options.out / "starter", vae.cpu(), denoiser.cpu())
    jobs["judge"].model.cpu()
    write_judge_folder(options.out / "judge", jobs["judge"].model)  # type: ignore[arg-type]
    jobs["judge"].model.to(build.device)
    lines, guidance = _measure(build, jobs)
    for line in lines:
        say(f"{'reached' if line.met else 'MISSED '}  {line.what}: {line.found} (target {line.target})")
    facts = job_facts(list(jobs.values()), options.start)
    write_card(options.out, build.work, lines, facts, guidance, build.device)


if __name__ == "__main__":
    main()
