"""What ``inspect`` finds out about files of weights, as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorasmith.model.architecture import Architecture
from lorasmith.model.file_facts import Hashes, printable, stated, stated_hash
from lorasmith.model.lora_report import LoraReport

Verdict = Literal["safe", "unsafe", "damaged", "not supported", "unreadable"]


@dataclass(frozen=True)
class Part:
    """A part of a model: ``parameters`` counts floating-point numbers, ``dtypes`` the tensors of each."""

    name: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class Ema:
    """A moving average of the weights beside the weights.

    Attributes:
        tensors: of the moving average.
        weights: tensors that should have one.
        missing: the names of weights that have none, though there is one of others.
        unknown: names in the moving average that belong to no weight.
        distance: |average - weights| / |weights| over all pairs; None where it was not measured.
        decay, updates: what the file says of how it was made.
    """

    tensors: int
    weights: int
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    distance: float | None = None
    decay: float | None = None
    updates: int | None = None


@dataclass(frozen=True)
class FileReport:
    """What one file holds.

    Attributes:
        folder_part: the folder it is in, inside a model's folder, such as "unet"; "" elsewhere.
        size: in bytes.
        verdict: whether it may be opened; where not, ``reason``, ``place`` (in the file) and ``fix`` say why.
        container: how the file is written: "safetensors", "torch zip", "torch legacy" or "torch tar".
        pickle_globals: the names that a pickle asks for.
        lora: for plain LoRAs, where it was asked for.
        not_finite: how many numbers of which tensors are NaN or infinite; None where it was not looked for.
        scalars, metadata, left_out: as ``Checkpoint`` has them.
    """

    path: Path
    folder_part: str
    size: int
    verdict: Verdict
    reason: str = ""
    place: str = ""
    fix: str = ""
    container: str = ""
    pickle_globals: tuple[str, ...] = ()
    architecture: Architecture = field(default_factory=lambda: Architecture("unknown", "unknown"))
    parts: tuple[Part, ...] = ()
    ema: Ema | None = None
    lora: LoraReport | None = None
    hashes: Hashes | None = None
    not_finite: Mapping[str, int] | None = None
    scalars: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def stated(self) -> dict[str, str]:
        """What the file says of its own making, in words."""
        return stated(self.metadata)

    @property
    def findings(self) -> tuple[str, ...]:
        """What is wrong with the weights, one sentence each."""
        return tuple(_findings(self))

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"path": self.path.as_posix(), "architecture": asdict(self.architecture)}
        values["architecture"]["text"] = str(self.architecture)
        for name in ("ema", "lora", "hashes"):
            values[name] = asdict(values[name]) if values[name] is not None else None
        if self.lora is not None:
            values["lora"]["is_zero"] = self.lora.is_zero
        values["parts"] = [asdict(part) for part in self.parts]
        return {**values, "stated": self.stated, "findings": list(self.findings)}


@dataclass(frozen=True)
class Report:
    """What a file or folder holds.

    Attributes:
        pipeline: the class that a diffusers folder's model_index.json names, or "".
        settings: what its scheduler says of how the model was trained, such as its prediction_type.
    """

    path: Path
    files: tuple[FileReport, ...]
    pipeline: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "path": self.path.as_posix(),
            "pipeline": self.pipeline,
            "settings": dict(self.settings),
            "files": [file.to_json() for file in self.files],
        }


def _findings(report: FileReport) -> Iterator[str]:
    lora, ema, hashes = report.lora, report.ema, report.hashes
    if lora is not None and lora.is_zero:
        yield "This LoRA is all zeros: it changes nothing. It is untrained, or its training or its saving failed."
    elif lora is not None and lora.zero_modules:
        yield f"{lora.zero_modules} of the LoRA's {lora.modules} layers are zero and change nothing."
    if lora is not None and lora.broken:
        yield f"{len(lora.broken)} layers are half, do not fit together or are not finite, such as {lora.broken[0]}."
    if report.not_finite:
        name, count = next(iter(report.not_finite.items()))
        yield f"{len(report.not_finite)} tensors hold NaN or infinite numbers, such as {printable(name)} ({count:,})."
    if ema is not None and ema.weights and (ema.missing or ema.unknown):
        example = printable((ema.missing or ema.unknown)[0])
        yield (
            f"The moving average (EMA) is not whole: {len(ema.missing)} weights have none, and {len(ema.unknown)} of "
            f"its tensors belong to no weight, such as {example}."
        )
    said = stated_hash(report.metadata)
    if hashes is not None and said and hashes.weights and said != hashes.weights:
        yield "The file's weights are not those it was saved with: the hash in its metadata is another."
