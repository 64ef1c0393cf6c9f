"""The usual way, written plainly with diffusers and peft: what lorasmith is measured against.

Training is diffusers' examples/text_to_image/train_text_to_image_lora.py as the reference work calls it: the VAE and
the text encoder run for every picture in every step, one picture at a time with accumulation, gradient checkpointing,
the loss read at each of them; fp16 under autocast on a GPU, fp32 on a CPU. Generating is a StableDiffusionPipeline
with the LoRA as layers of its own, one prompt at a time; both ways have the same sampler and no safety checker.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from lorasmith.bench.job import Job, Measured
from lorasmith.bench.measure import Turns, flops, matrix_rate, name_of, peak_mib, timed, warm_up
from lorasmith.bench.ours import PROMPT, weights_gb
from lorasmith.generate.samplers import make_scheduler
from lorasmith.model.find_base import find_folder
from lorasmith.model.stable_diffusion import load_base, pick_device, pick_dtype

_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
_PICTURES = 8


class StockTraining:
    """A LoRA in training the usual way.

    Args:
        base: as for ``load_base``, which loads it; nobody's loading is measured here.
        folders: of pictures, each with a metadata.jsonl.
        size: side of the square pictures in pixels; None is the base's own.
        accumulation: pictures of an optimizer step.

    Attributes:
        sd: the base, without an adapter until the first ``step``.
    """

    def __init__(
        self, base: str, folders: Sequence[Path], *, size: int | None, accumulation: int, rank: int, device: str
    ) -> None:
        self.device = pick_device(device)
        self.half = self.device.type == "cuda"
        self.dtype = torch.float16 if self.half else torch.float32
        self.sd = load_base(base, device=self.device, dtype=self.dtype)
        self.sd.vae.to(self.dtype)
        self.size, self.accumulation, self.rank = size or self.sd.size, accumulation, rank
        self.pictures = _endless(folders, self.sd.tokenizer, self.size)
        self.parameters: list[torch.nn.Parameter] = []

    def attach(self) -> None:
        """Add the adapter, and make the optimizer."""
        from diffusers import DDPMScheduler
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        torch.manual_seed(0)
        unet = self.sd.unet
        gaussian: Any = "gaussian"
        unet.add_adapter(
            LoraConfig(r=self.rank, lora_alpha=self.rank, init_lora_weights=gaussian, target_modules=_TARGETS)
        )
        cast_training_params(unet, dtype=torch.float32)
        unet.enable_gradient_checkpointing()
        unet.train()
        self.parameters = [p for p in unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-2)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half)
        self.schedule = DDPMScheduler.from_config(self.sd.scheduler_config)

    def step(self) -> None:
        """Take one optimizer step."""
        if not self.parameters:
            self.attach()
        for _ in range(self.accumulation):
            loss = self._loss(*next(self.pictures))
            loss.item()  # the example logs the loss of every micro-step
            torch.autograd.backward(self.scaler.scale(loss / self.accumulation))
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _loss(self, pixels: Tensor, ids: Tensor) -> Tensor:
        sd, schedule = self.sd, self.schedule
        with torch.no_grad():
            latents = sd.vae.encode(pixels.to(self.device, self.dtype)).latent_dist.sample() * sd.scaling_factor
            text = sd.text_encoder(ids.to(self.device), return_dict=False)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),), device=self.device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        velocity = schedule.config.prediction_type == "v_prediction"
        target = schedule.get_velocity(latents, noise, timesteps) if velocity else noise
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            answer = sd.unet(noisy, timesteps, text, return_dict=False)[0]
        return F.mse_loss(answer.float(), target.float())


def train(job: Job, turns: Turns) -> Measured:
    """Train the usual way, ``job.batch`` times one picture a step."""
    with tempfile.TemporaryDirectory(prefix="lorasmith-bench-") as folder:
        pictures = _random_pictures(Path(folder), job.size or 512)
        training = StockTraining(
            job.base, [pictures], size=job.size, accumulation=job.batch, rank=job.rank, device=job.device
        )
        device = training.device
        count = flops(training.sd, job, training.size)

        def step(number: int) -> None:
            training.step()
            turns.tell(number + 1, job.steps)

        rates = partial(matrix_rate, device, training.dtype)
        done, seconds, rate = timed(turns, device, step, training.step, warm_up(job), rates)
    return _measured(device, training.dtype, done * job.batch, seconds, count, rate)


@torch.no_grad()
def generate(job: Job, turns: Turns) -> Measured:
    """Draw ``job.batch`` pictures the usual way, one after the other."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig

    device = pick_device(job.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    sd = load_base(job.base, device=device, dtype=dtype)
    size = job.size or sd.size
    count = flops(sd, job, size)
    nonzero: Any = "gaussian"
    sd.unet.add_adapter(LoraConfig(r=job.rank, lora_alpha=job.rank, init_lora_weights=nonzero, target_modules=_TARGETS))
    sd.vae.to(dtype)
    pipe = StableDiffusionPipeline(
        vae=sd.vae,
        text_encoder=sd.text_encoder,
        tokenizer=sd.tokenizer,
        unet=sd.unet,
        scheduler=make_scheduler(sd, "dpm++2m"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)

    def draw(seed: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        pipe(PROMPT, num_inference_steps=steps, guidance_scale=7.5, height=size, width=size, generator=generator)

    def draw_all(_: int) -> None:
        for seed in range(job.batch):
            draw(seed, job.steps)
            turns.tell(seed + 1, job.batch)

    rates = partial(matrix_rate, device, dtype)
    done, seconds, rate = timed(turns, device, draw_all, lambda: draw(0, 1), yardstick=rates)
    return _measured(device, dtype, done * job.batch, seconds, count, rate)


def load(job: Job, turns: Turns) -> Measured:
    """Load the base with diffusers' own loaders, in the number format that lorasmith would take."""
    from diffusers import StableDiffusionPipeline

    device = pick_device(job.device)
    dtype = pick_dtype(job.precision, device)
    options = {"torch_dtype": dtype, "safety_checker": None, "local_files_only": True}

    def pipeline() -> Any:
        if job.base != "starter" and Path(job.base).is_file():
            return StableDiffusionPipeline.from_single_file(job.base, **options).to(device)
        return StableDiffusionPipeline.from_pretrained(find_folder(job.base), **options).to(device)

    sizes = []

    def once(number: int) -> None:
        pipe = pipeline()
        sizes.append(weights_gb(pipe.unet, pipe.vae, pipe.text_encoder))
        turns.tell(number + 1, job.steps)

    done, seconds, _ = timed(turns, device, once, pipeline)
    return _measured(device, dtype, done * sizes[0], seconds)


def _random_pictures(folder: Path, size: int) -> Path:
    random, lines = np.random.default_rng(0), []
    for number in range(_PICTURES):
        pixels = random.integers(0, 256, (size + 16, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": PROMPT}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def _endless(folders: Sequence[Path], tokenizer: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    length = {"max_length": tokenizer.model_max_length, "padding": "max_length", "truncation": True}
    rows = []
    for folder in folders:
        for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append((folder / row["file_name"], tokenizer(row["text"], return_tensors="pt", **length).input_ids))
    generator = torch.Generator().manual_seed(0)
    while True:
        for index in torch.randperm(len(rows), generator=generator).tolist():
            path, ids = rows[index]
            with Image.open(path) as opened:
                picture = ImageOps.fit(opened.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
            yield pixels[None], ids


def _measured(
    device: torch.device, dtype: torch.dtype, done: float, seconds: float, count: float = 0.0, rate: float = 0.0
) -> Measured:
    return Measured("reference", str(device), name_of(dtype), done, seconds, count, rate, peak_mib(device))
