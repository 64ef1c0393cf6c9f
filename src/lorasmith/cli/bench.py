"""``lorasmith bench``: how fast this machine trains, generates and loads, beside the usual scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from lorasmith.errors import OutputError, RecipeError

if TYPE_CHECKING:
    from lorasmith.bench.compare import Comparison
    from lorasmith.bench.job import Verb
    from lorasmith.events import Event

_STEPS = {"train": 10, "generate": 10, "load": 3}
_SECONDS = 300.0  # of measuring, if --steps does not say how much; a large base on a CPU would take half an hour


@click.command("bench", short_help="Measure speed beside the usual scripts.")
@click.argument("verb", type=click.Choice(list(_STEPS)))
@click.option("--base", default="starter", show_default=True, help="The base, as for the other commands.")
@click.option("--size", type=click.IntRange(32, 2048), help="Side in pixels.  [default: the base's own size]")
@click.option("--batch", type=click.IntRange(1, 256), default=4, show_default=True, help="Pictures at once.")
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    help="Optimizer or sampler steps; times to load.  [10; load 3; fewer where they would take over 5 minutes]",
)
@click.option("--rank", type=click.IntRange(1, 1024), default=16, show_default=True, help="Rank of the LoRA.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16; lorasmith's only.")
@click.option("--no-reference", is_flag=True, help="Do not measure the reference way.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the result to a new .md or .json file.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(
    verb: str,
    base: str,
    size: int | None,
    batch: int,
    steps: int | None,
    rank: int,
    device: str,
    precision: str,
    no_reference: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure training, generating or loading on random data, and the same done the reference way.

    The reference way is that of the stock scripts, diffusers and peft alone: for training the VAE and the text
    encoder at each step, one picture at a time with accumulation, gradient checkpointing; for generating one prompt
    at a time with the LoRA as layers of its own; for loading from_pretrained. Each runs in a process of its own, and
    both take turns of a few steps, so that whatever else the machine does meets them alike.

    \b
    Examples:
      lorasmith bench train
      lorasmith bench train --base models/stable-diffusion-v1-5 --size 512 --batch 4 --out speed.md
      lorasmith bench generate --batch 8 --steps 25
      lorasmith bench load --base v1-5-pruned.ckpt --json
    """
    _check_out(out)
    from lorasmith.bench.compare import bench
    from lorasmith.bench.job import Job
    from lorasmith.cli.screen import print_json, show

    job = Job(cast("Verb", verb), base, size, batch, steps or _STEPS[verb], rank, device, precision)
    found: list[Comparison] = []

    def events() -> Iterator[Event]:
        found.append((yield from bench(job, reference=not no_reference, seconds=None if steps else _SECONDS)))

    if as_json:
        for _ in events():
            pass
        print_json(found[0].to_json())
    else:
        show(events())
        _table(found[0])
    if out:
        _write(out, found[0])


def _check_out(out: Path | None) -> None:
    if out and out.suffix.lower() not in (".md", ".json"):
        raise RecipeError("The result is written as .md or .json.", where=str(out), fix="Name such a file.")
    if out and out.exists():
        raise OutputError("There is a file of that name already.", where=str(out), fix="Choose another name.")


def _write(out: Path, comparison: Comparison) -> None:
    from lorasmith.files import json_text, write_text

    markdown = out.suffix.lower() == ".md"
    write_text(out, comparison.markdown() if markdown else json_text(comparison.to_json(), indent=2) + "\n")


def _table(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    from lorasmith.cli.screen import say

    table = Table("", "lorasmith", "reference", "ratio", title=f"lorasmith bench {comparison.job.verb}")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in comparison.rows():
        table.add_row(*row)
    say(f"{comparison.words()} {comparison.machine}.")
    Console().print(table)
    if comparison.faster:
        say(f"lorasmith is {comparison.faster:.2f} times as fast as the reference way here.")
