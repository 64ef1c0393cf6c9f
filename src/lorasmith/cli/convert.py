"""``lorasmith convert``: a base in another layout or precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorasmith.cli.options import base_options


@click.command("convert", short_help="Write a base as one file or a folder, in another precision.")
@click.argument("base")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["same", "fp32", "fp16", "bf16"]),
    default="same",
    show_default=True,
    help="Number format of the weights.",
)
@base_options
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def command(base: str, out: Path, dtype: str, vae: str | None, weights: Any, as_json: bool) -> None:
    """Write BASE to OUT: one file in the original layout where OUT ends in .safetensors, else a diffusers folder.

    BASE is whatever `lorasmith train` takes as its base. Nothing is overwritten, pickles are read safely and never
    written, and the result is read back and compared: at the same precision every bit is the same.

    \b
    Examples:
      lorasmith convert v1-5-pruned.ckpt models/sd15
      lorasmith convert v1-5-pruned.ckpt sd15-fp16.safetensors --dtype fp16
      lorasmith convert v1-5-pruned.ckpt models/sd15-ema --weights ema
      lorasmith convert models/sd15 sd15.safetensors --vae vae-ft-mse-840000-ema-pruned.safetensors
    """
    import torch

    from lorasmith.cli.screen import show
    from lorasmith.model.convert import convert
    from lorasmith.model.find_base import find_base

    dtypes = {"same": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    show(convert(find_base(base, vae=vae, weights=weights), out, dtypes[dtype]), as_json=as_json)
