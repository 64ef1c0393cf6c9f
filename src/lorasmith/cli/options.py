"""What the commands that draw pictures have in common: options, and how their values are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from lorasmith.errors import RecipeError
from lorasmith.recipe.schema import Sampler, WeightChoice

if TYPE_CHECKING:
    from lorasmith.model.stable_diffusion import StableDiffusion

_Function = TypeVar("_Function", bound=Callable[..., Any])

_BASE_OPTIONS = (
    click.option("--vae", help="VAE to use instead of the base's own: a file or a folder."),
    click.option(
        "--weights",
        type=click.Choice(get_args(WeightChoice)),
        default="auto",
        show_default=True,
        help="Which of the UNet's weights, where the base has their moving average (EMA) too.",
    ),
)
_PICTURE_OPTIONS = (
    click.option(
        "--base",
        default="starter",
        show_default=True,
        help="Model to draw with: starter, a folder in the diffusers layout, one .safetensors or .ckpt file, or a "
        "Hugging Face id.",
    ),
    *_BASE_OPTIONS,
    click.option("--negative", default="", help="What the pictures should not show."),
    click.option("--width", type=click.IntRange(1), help="Pixels.  [default: the base's own size]"),
    click.option("--height", type=click.IntRange(1), help="Pixels.  [default: the base's own size]"),
    click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Sampler steps."),
    click.option(
        "--guidance",
        type=click.FloatRange(0, 100),
        default=7.5,
        show_default=True,
        help="How closely the prompt is followed; 1 or less turns guidance off and halves the time.",
    ),
    click.option("--sampler", default="dpm++2m", show_default=True, help=f"One of {', '.join(get_args(Sampler))}."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the first picture."),
    click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Pictures drawn at once."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."),
    click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16."),
    click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines."),
)


def picture_options(function: _Function) -> _Function:
    """Give a command the options that say how pictures are drawn."""
    return _with(function, _PICTURE_OPTIONS)


def base_options(function: _Function) -> _Function:
    """Give a command the options that say which weights of a base are used."""
    return _with(function, _BASE_OPTIONS)


def _with(function: _Function, options: Sequence[Callable[[Any], Any]]) -> _Function:
    for option in reversed(options):
        function = option(function)
    return function


def parse_lora(text: str) -> tuple[Path, float]:
    """Return the path and the weight of ``FILE[:WEIGHT]``; the weight is 1 where none is given.

    A colon may also follow a Windows drive letter, so only a number after the last colon is a weight.

    Raises:
        RecipeError: there is no path, or the weight is not finite.
    """
    path, colon, tail = text.rpartition(":")
    weight = _number(tail) if colon and not Path(text).exists() else None
    if weight is None:
        path, weight = text, 1.0
    if not path or not math.isfinite(weight):
        raise RecipeError(
            f"{text!r} is not a LoRA with a weight.",
            where="--lora",
            fix="Write FILE or FILE:WEIGHT, as axe.safetensors:0.8.",
        )
    return Path(path), weight


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """Return the prompts given one by one and those in a UTF-8 text file, one a line; empty lines do not count.

    Raises:
        RecipeError: there are none, or the file cannot be read.
    """
    lines: list[str] = []
    if file:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except OSError as error:
            what = f"The prompts cannot be read: {error.strerror}."
            raise RecipeError(what, where=str(file), fix="Check the path and its spelling.") from error
        except UnicodeDecodeError as error:
            what = "The file of prompts is not UTF-8 text."
            raise RecipeError(what, where=str(file), fix="Save it again as UTF-8 in your editor.") from error
    found = [text for text in (*prompts, *lines) if text.strip()]
    if not found:
        raise RecipeError(
            "There is no prompt.",
            where=str(file) if file else None,
            fix='Say what to draw with --prompt "an axe", or name a text file with --prompts.',
        )
    return found


def load(
    base: str, device: str, precision: str, *, vae: str | None = None, weights: WeightChoice = "auto"
) -> StableDiffusion:
    """Load a base onto a device; see ``load_base``, ``pick_device`` and ``pick_dtype`` for what they raise."""
    from lorasmith.model.stable_diffusion import load_base, pick_device, pick_dtype

    chosen = pick_device(device)
    return load_base(base, device=chosen, dtype=pick_dtype(precision, chosen), vae=vae, weights=weights)
