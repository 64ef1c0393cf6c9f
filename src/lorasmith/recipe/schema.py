"""What a recipe may say. The reference page docs/recipe.md is made from this module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator

Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
WeightChoice = Literal["auto", "non-ema", "ema"]
Sampler = Literal["dpm++2m", "dpm++2m-karras", "dpm++2m-sde", "euler", "euler-a", "ddim", "pndm", "heun", "unipc"]

_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def is_safe_name(name: str) -> bool:
    """Return whether ``name`` can name a file on every system: letters, digits, ``.``, ``_`` and ``-``."""
    shape = re.fullmatch(r"\w[\w.\-]{0,62}[\w\-]|\w", name)
    return shape is not None and not _WINDOWS_DEVICES.match(name)


class Section(BaseModel):
    """What every part of a recipe shares: frozen, finite, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """The pictures: which, how large, and how many are held out."""

    folders: tuple[Path, ...] = Field(
        default=(),
        description="Picture folders, one class each. A relative path starts at the recipe file.",
    )
    preserve: tuple[Path, ...] = Field(
        default=(),
        description="Folders of pictures with captions that the base draws right, such as ones it has drawn itself: on "
        "these the LoRA learns to answer as the base does, so that it changes little else than what it is for. Each "
        "counts as a class; none of their pictures is held out.",
    )
    resolution: Integer | None = Field(
        default=None,
        ge=32,
        le=2048,
        description="Side of the square training pictures, in pixels; without it, the base's own size.",
    )
    crop: Literal["center", "random"] = Field(
        default="center",
        description="How a picture that is not square is cut: its centre, or at random places.",
    )
    crops: Integer = Field(
        default=4, ge=1, le=64, description='Random crops kept in the cache for each picture, with `crop = "random"`.'
    )
    flip: Flag = Field(
        default=False,
        description="Also train on mirror images. Wrong for things with a left and a right, such as text.",
    )
    validation: Number = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Share of the pictures held out to measure the validation loss; at least 4 when there are 40.",
    )
    balance: Literal["class", "none"] = Field(
        default="class", description="Draw every class equally often, or every picture equally often."
    )
    strict: Flag = Field(default=False, description="Stop if any picture has to be left out.")

    @field_validator("folders", "preserve")
    @classmethod
    def _folders_are_text(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        for folder in folders:
            if not str(folder).isprintable():
                raise ValueError(f"a folder's name must be printable Unicode text, not {str(folder)!r}: rename it")
        return folders


class LoraSection(Section):
    """The adapter: how large it is and where it sits."""

    rank: Integer = Field(
        default=16,
        ge=1,
        le=1024,
        description="Rank of each weight change: a higher one holds more and overfits sooner.",
    )
    alpha: Number | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="The weight change is scaled by alpha / rank; without it, alpha is the rank.",
    )
    dropout: Number = Field(
        default=0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped while training."
    )
    targets: Literal["attention", "attention+ff", "all"] = Field(
        default="attention",
        description="UNet layers that get an adapter: attention, also the feed-forward layers, or convolutions too.",
    )
    text_encoder: Flag = Field(default=False, description="Also train an adapter on the text encoder's attention.")


class TrainSection(Section):
    """The training itself."""

    steps: Integer = Field(default=1000, ge=1, le=1_000_000, description="Optimizer steps.")
    batch: Integer = Field(default=4, ge=1, le=1024, description="Pictures in one forward pass.")
    accumulation: Integer = Field(
        default=1,
        ge=1,
        le=1024,
        description="Forward passes for one optimizer step; it sees batch x accumulation pictures.",
    )
    learning_rate: Number = Field(default=2e-4, gt=0, le=1, description="AdamW's learning rate for the UNet's adapter.")
    text_encoder_learning_rate: Number | None = Field(
        default=None,
        gt=0,
        le=1,
        description="AdamW's learning rate for the text encoder's adapter; without it, a quarter of learning_rate.",
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="cosine", description="How the learning rate goes after the warm-up: it stays, or falls to zero."
    )
    warmup: Integer = Field(
        default=20, ge=0, le=100_000, description="Steps over which the learning rate rises from zero."
    )
    weight_decay: Number = Field(default=0.01, ge=0, le=1, description="AdamW's decoupled weight decay.")
    max_grad_norm: Number = Field(
        default=1.0, ge=0, le=1000, description="The gradient is clipped to this norm; 0 turns clipping off."
    )
    seed: Integer = Field(default=0, ge=0, le=2**32 - 1, description="Seed of everything random in the training.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Number format of the frozen base; auto asks the device. The adapter itself is always fp32.",
    )
    gradient_checkpointing: Flag | None = Field(
        default=None,
        description="Compute activations twice instead of keeping them: less memory, about 30 % slower; "
        "without it, done only where the memory does not suffice otherwise.",
    )
    ignore_memory_forecast: Flag = Field(
        default=False, description="Train even if the memory is forecast not to suffice, which is refused otherwise."
    )
    compile: Flag = Field(
        default=False,
        description="Compile the UNet with torch.compile before the first step: minutes of waiting, then faster steps "
        "on a GPU. Needs a C++ compiler, on a GPU also triton; without them the training warns and goes on.",
    )
    deterministic: Flag = Field(
        default=False,
        description="On a GPU, use only algorithms that add in the same order each time, so that the same training "
        "ends with the same bytes, stopped and resumed or not; slower. On a CPU that is so without it.",
    )
    min_snr_gamma: Number = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Caps the loss weight of nearly clean pictures (min-SNR, Hang et al. 2023); 0 turns it off.",
    )
    caption_dropout: Number = Field(
        default=0.05, ge=0, le=1, description="Share of pictures trained with an empty caption, for guidance."
    )
    preserve_weight: Number = Field(
        default=1.0, ge=0, le=1000, description="Weight of the loss on the pictures of `data.preserve`."
    )
    noise_offset: Number = Field(
        default=0.0, ge=0, le=1, description="Strength of the constant added to each channel's noise; 0 turns it off."
    )
    ema: Number = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of a moving average of the adapter's weights, such as 0.99; the average is then what is "
        "validated, drawn with and written as the LoRA. 0 turns it off.",
    )
    save_every: Integer | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Steps between checkpoints, each with samples; without it, every fifth of the steps.",
    )
    keep_last: Integer = Field(
        default=10,
        ge=1,
        le=100_000,
        description="Newest checkpoints that are kept; so is the one with the best validation loss. Older ones are "
        "removed once the next is written and read back.",
    )
    keep_every: Integer | None = Field(
        default=None, ge=1, le=1_000_000, description="Also keep the checkpoints at multiples of this many steps."
    )
    rollback_after: Integer = Field(
        default=5,
        ge=1,
        le=1000,
        description="Steps in a row with a loss or gradient that is not finite, each skipped, after which the training "
        "goes back to the last good checkpoint with half the learning rate.",
    )
    rollbacks: Integer = Field(
        default=3, ge=0, le=20, description="How often it goes back so; then it stops with a diagnosis."
    )
    log_every: Integer = Field(default=10, ge=1, le=100_000, description="Steps between two lines of figures.")
    device: str = Field(
        default="auto", min_length=1, description='Where to compute: "auto", "cpu", "cuda", "cuda:1" or "mps".'
    )


class SamplesSection(Section):
    """The sample pictures made from the base and at every checkpoint."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="Prompts of the samples; without any, the commonest caption of each of the first four classes.",
    )
    negative: str = Field(default="", description="What the sample pictures should not show.")
    count: Integer = Field(default=1, ge=1, le=64, description="Pictures for each prompt.")
    seed: Integer = Field(
        default=1000, ge=0, le=2**32 - 1, description="Seed of the first picture of each prompt; the next has the next."
    )
    steps: Integer = Field(default=25, ge=1, le=1000, description="Sampler steps.")
    guidance: Number = Field(
        default=7.5, ge=0, le=50, description="Classifier-free guidance scale; 1 or less turns guidance off."
    )
    sampler: Sampler = Field(default="dpm++2m", description="Sampler that draws the pictures.")


class Recipe(Section):
    """Everything about one training."""

    version: Literal[1] = Field(default=1, description="Version of the recipe format.")
    name: str = Field(
        default="lora",
        description="Name of the LoRA and of its run folder: letters, digits, `.`, `_` and `-`, at most 64.",
    )
    base: str = Field(
        default="starter",
        min_length=1,
        description='The model to adapt: "starter" (built in), a folder in the diffusers layout, one .safetensors or '
        ".ckpt file, or a Hugging Face id.",
    )
    vae: str | None = Field(
        default=None, min_length=1, description="A VAE to use instead of the base's own: a file or a folder."
    )
    weights: WeightChoice = Field(
        default="auto",
        description="Which of the UNet's weights, where the base has their moving average (EMA) too: auto and non-ema "
        "take the weights themselves, which train better.",
    )
    data: DataSection = DataSection()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    samples: SamplesSection = SamplesSection()

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not is_safe_name(name):
            raise ValueError("must be letters, digits, '.', '_' and '-' only, at most 64, and not end with a dot")
        return name
