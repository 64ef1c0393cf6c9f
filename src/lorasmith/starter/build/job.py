"""A training job with a time budget that can be killed and goes on where it was."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.model.stable_diffusion import pick_dtype
from lorasmith.starter.build.muon import Muon, hidden_matrices


def cosine(fraction: float, peak: float, last: float = 0.02) -> float:
    """Return the learning rate at a fraction of the budget: a short warm-up, then a half cosine to ``last * peak``."""
    if fraction < 0.01:
        return peak * max(fraction, 1e-4) / 0.01
    return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction))))


def autocast(device: torch.device) -> torch.autocast:
    """Return a context that computes in bfloat16 where the device multiplies it natively, else in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=pick_dtype("auto", device) != torch.float32)


def fingerprint(model: nn.Module) -> str:
    """Return a few digits that change with the weights: for the names of files that were made with them."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


@dataclass(frozen=True)
class Site:
    """Where a build works: the folder for its state, the device, how many processes draw, and who is told.

    ``start`` is a folder with finished models (``starter/``, ``judge/``); a part with no state of its own begins with
    those weights instead of random ones.
    """

    work: Path
    device: torch.device
    workers: int
    say: Callable[[str], None]
    start: Path | None = None


@dataclass
class Job:
    """Trains ``model`` until its time budget is spent.

    The fraction of the budget that is spent drives every schedule, so the same code fits any budget. State is saved
    every minute and at the end: weights, their moving average, optimizer, time spent, steps and samples. At
    ``deadline``, a reading of ``time.monotonic()``, it stops for now.
    """

    name: str
    model: nn.Module
    folder: Path
    minutes: float | None  # None: what it was given before
    deadline: float = math.inf
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    spent: float = 0.0
    steps: int = 0
    samples: int = 0
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for p in hidden_matrices(self.model) if p.requires_grad]
        ours = set(map(id, matrices))
        others = [p for p in self.trained if id(p) not in ours]
        rate, decay = self.learning_rate, self.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=rate, weight_decay=decay, betas=(0.9, 0.99), fused=True),
            Muon(matrices, lr=rate, weight_decay=decay),
        ]
        if self.file.exists():
            self._load()
        if not self.average:
            self.average = {k: v.detach().clone().float() for k, v in self.model.state_dict().items()}

    @property
    def file(self) -> Path:
        """Where the state is kept."""
        return self.folder / f"{self.name}.pt"

    @property
    def fraction(self) -> float:
        """The part of the budget that is spent, 0 to 1."""
        return min(1.0, self.spent / (self.minutes * 60)) if self.minutes else 0.0

    @property
    def idle(self) -> bool:
        """True when there is nothing to do now."""
        return self.finished or time.monotonic() >= self.deadline

    @property
    def finished(self) -> bool:
        """True when the budget is spent."""
        return self.fraction >= 1.0

    def run(self, loss: Callable[[float, int], tuple[Tensor, int]], say: Callable[[str], None]) -> None:
        """Train: ``loss(fraction, step)`` returns a step's loss and how many samples it saw."""
        last_saved, last_said, total, count = self.spent, self.spent, 0.0, 0
        device = self.trained[0].device
        while not self.idle:
            start = time.perf_counter()
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = cosine(self.fraction, self.learning_rate)
            value, samples = loss(self.fraction, self.steps)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.zero_grad(set_to_none=True)
            self._update_average()
            self.steps += 1
            self.samples += samples
            if self.steps % 10 == 0 or device.type == "cpu":
                total, count = total + float(value.detach()), count + 1
            self.spent += time.perf_counter() - start
            if self.spent - last_said > 20:
                rate = self.samples / self.spent
                place = f"{self.name}: {100 * self.fraction:5.1f} %  step {self.steps}"
                say(f"{place}  loss {total / count:.4f}  {rate:.0f}/s")
                last_said, total, count = self.spent, 0.0, 0
            if self.spent - last_saved > 60:
                self.save()
                last_saved = self.spent
        self.save()

    def _update_average(self) -> None:
        decay = min(self.ema_decay, (1 + self.steps) / (10 + self.steps))
        values = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [values[key].float() for key in self.average], 1 - decay)

    def save(self) -> None:
        """Write the state aside, then rename it into place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        state: dict[str, Any] = {
            "model": self.model.state_dict(), "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "spent": self.spent, "steps": self.steps, "samples": self.samples, "minutes": self.minutes,
        }  # fmt: skip
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.file)

    def _load(self) -> None:
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        device = self.trained[0].device
        self.average = {k: v.to(device) for k, v in state["average"].items()}
        self.spent, self.steps, self.samples = state["spent"], state["steps"], state["samples"]
        self.minutes = self.minutes or state["minutes"]

    def use_average(self) -> nn.Module:
        """Put the moving average of the weights into the model and return it; for measuring and shipping."""
        own = self.model.state_dict()
        self.model.load_state_dict({k: v.to(own[k].dtype) for k, v in self.average.items()})
        return self.model.eval()
