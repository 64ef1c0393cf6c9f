"""What is measured, and what came out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verb = Literal["train", "generate", "load"]
UNITS = {"train": "samples", "generate": "pictures", "load": "GB"}


@dataclass(frozen=True)
class Job:
    """What both ways do.

    Attributes:
        verb: train a LoRA, generate pictures with one, or load the base.
        base: as for ``load_base``.
        size: side of the square pictures in pixels; None is the base's own size.
        batch: pictures at once. The reference way takes one at a time; its training adds ``batch`` of them up.
        steps: optimizer steps; sampler steps of each picture; or how often the base is loaded.
        rank: of the LoRA on the UNet's attention.
        device, precision: as in a recipe; ``precision`` is lorasmith's, the reference way has its own.
    """

    verb: Verb
    base: str = "starter"
    size: int | None = None
    batch: int = 4
    steps: int = 10
    rank: int = 16
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Ready:
    """What a way has seen of itself when it has warmed up.

    Attributes:
        seconds: of the last step of the warm-up.
        peak_mib: the most memory taken so far, as in ``Measured``.
        free_mib: what the device has left.
    """

    seconds: float
    peak_mib: float
    free_mib: float


@dataclass(frozen=True)
class Measured:
    """What one way took.

    Attributes:
        way: "lorasmith" or "reference".
        device, precision: where and in which number format the frozen base computed.
        done: samples, pictures or GB in ``seconds``; warm-up and, but for "load", loading are left out.
        flops: floating-point operations of the UNet's useful work in one sample or picture; see ``measure.flops``.
        matrix_rate: of a large matrix product in the same process and number format, in operations a second.
        peak_mib: the most memory taken: of tensors on a GPU, else of the process.
    """

    way: str
    device: str
    precision: str
    done: float
    seconds: float
    flops: float
    matrix_rate: float
    peak_mib: float

    @property
    def rate(self) -> float:
        """Samples, pictures or GB a second."""
        return self.done / self.seconds

    @property
    def share(self) -> float:
        """The useful operations a second over those of the matrix product."""
        return self.rate * self.flops / self.matrix_rate if self.matrix_rate else 0.0

    def to_json(self, verb: Verb) -> dict[str, Any]:
        """Return all figures, derived ones too."""
        figures = {**asdict(self), "rate": self.rate, "unit": f"{UNITS[verb]}/s"}
        if self.flops:
            figures |= {"tflops_per_second": self.rate * self.flops / 1e12, "share_of_matrix_product": self.share}
        return figures
