"""``lorasmith grid``: pictures side by side in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasmith.cli.options import load, parse_lora, picture_options, read_prompts
from lorasmith.errors import OutputError
from lorasmith.events import Event, Finished, Progress

if TYPE_CHECKING:
    from lorasmith.generate.grid import Axis
    from lorasmith.generate.sample import Picture, Request
    from lorasmith.model.stable_diffusion import StableDiffusion


@click.command("grid", short_help="Compare prompts, weights, seeds, ... in one picture.")
@click.argument("pictures", nargs=-1, metavar="[PICTURE...]", type=click.Path(path_type=Path))
@click.option("--columns", metavar="AXIS", help="What changes from column to column, such as weight=0,0.5,1.")
@click.option("--rows", metavar="AXIS", help='What changes from row to row, such as "prompt=an axe|a spear".')
@click.option("--merge", is_flag=True, help="Put PICTURES, or one for each prompt, side by side without labels.")
@click.option("--prompt", "prompts", multiple=True, help="What to draw; with --merge, repeatable.")
@click.option("--lora", metavar="FILE[:WEIGHT]", help="LoRA to draw with.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New PNG file.")
@picture_options
def command(
    pictures: tuple[Path, ...],
    columns: str | None,
    rows: str | None,
    merge: bool,
    prompts: tuple[str, ...],
    lora: str | None,
    out: Path,
    base: str,
    vae: str | None,
    weights: Any,
    negative: str,
    width: int | None,
    height: int | None,
    steps: int,
    guidance: float,
    sampler: str,
    seed: int,
    batch: int,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Draw a picture for each column and row, and put them into one PNG file with labels.

    An AXIS is NAME=VALUE,VALUE,... with one of the names checkpoint, guidance, lora, prompt, sampler, seed, steps and
    weight; prompts are parted by |. For checkpoint and lora, the value "base" is the base alone, and a run folder
    stands for all its checkpoints.

    \b
    Examples:
      lorasmith grid --columns weight=0,0.5,1 --rows "prompt=an axe|a spear" --lora runs/axe-001 --out grid.png
      lorasmith grid --columns checkpoint=base,runs/axe-001 --rows seed=1,2,3 --prompt "an axe" --out progress.png
      lorasmith grid --merge axe.png spear.png trident.png whip.png --out merged.png
      lorasmith grid --merge --prompt "an axe" --prompt "a spear" --out merged.png
    """
    _check_usage(columns, rows, merge, pictures, prompts)
    if out.exists():
        raise OutputError("That file is already there.", where=str(out), fix="Choose another name, or remove it.")
    if out.suffix.lower() != ".png":
        raise OutputError("The picture is written as PNG.", where=str(out), fix="Choose a name that ends in .png")
    if lora and pictures:
        raise click.UsageError("A LoRA changes no PICTURE that is already there.")
    path, weight = parse_lora(lora) if lora else (None, 1.0)

    from lorasmith.cli.screen import show
    from lorasmith.files import require_writable
    from lorasmith.generate.generate import fused, use_lora
    from lorasmith.generate.grid import make_grid, parse_axis
    from lorasmith.generate.sample import Request

    require_writable(out.parent)
    if pictures:
        show(_merge_files(pictures, height, out), as_json=as_json)
        return
    request = Request("", negative, seed, steps, guidance, sampler, width, height)
    if merge:
        requests = [replace(request, prompt=text) for text in read_prompts(prompts, None)]
        used = [use_lora(path, weight)] if path else []
        sd = load(base, device, precision, vae=vae, weights=weights)
        with fused(sd, used):
            show(_merge_drawn(sd, requests, batch, out), as_json=as_json)
        return
    across = _with_checkpoints(parse_axis(columns or ""))
    down = _with_checkpoints(parse_axis(rows)) if rows else None
    if "prompt" not in (across.name, down.name if down else ""):
        request = replace(request, prompt=read_prompts(prompts, None)[0])
    sd = load(base, device, precision, vae=vae, weights=weights)
    show(make_grid(sd, across, down, request, out, lora=path, weight=weight, batch=batch), as_json=as_json)


def _check_usage(
    columns: str | None, rows: str | None, merge: bool, pictures: Sequence[Path], prompts: Sequence[str]
) -> None:
    if merge and (columns or rows):
        raise click.UsageError("--merge makes a plain strip: leave out --columns and --rows, or --merge.")
    if pictures and not merge:
        raise click.UsageError("To put PICTURES side by side, add --merge.")
    if pictures and prompts:
        raise click.UsageError("Merge either PICTURES or prompts.")
    if merge and not pictures and not prompts:
        raise click.UsageError("Name the PICTURES to put side by side, or what to draw with --prompt.")
    if not merge and not columns:
        raise click.UsageError("Say what changes with --columns, such as --columns weight=0,0.5,1.")
    if not merge and len(prompts) > 1:
        raise click.UsageError('For several prompts write --columns or --rows "prompt=FIRST|SECOND".')


def _with_checkpoints(axis: Axis) -> Axis:
    """Put the checkpoints of a run folder in the place of its name."""
    from lorasmith.run import complete_checkpoints

    if axis.name != "checkpoint":
        return axis
    values: list[str] = []
    for value in axis.values:
        values += [str(path) for path in complete_checkpoints(Path(value))] or [value]
    return replace(axis, values=tuple(values))


def _merge_files(paths: Sequence[Path], height: int | None, out: Path) -> Iterator[Event]:
    from lorasmith.dataset.picture import open_rgb

    yield from _merge([open_rgb(path) for path in paths], height, out)


def _merge_drawn(sd: StableDiffusion, requests: Sequence[Request], batch: int, out: Path) -> Iterator[Event]:
    from lorasmith.generate.sample import sample

    pictures: dict[int, Picture] = {}
    yield Progress("merge", 0, len(requests))
    for index, picture in sample(sd, requests, batch=batch):
        pictures[index] = picture
        yield Progress("merge", len(pictures), len(requests))
    yield from _merge([pictures[index] for index in range(len(requests))], None, out)


def _merge(pictures: Sequence[Picture], height: int | None, out: Path) -> Iterator[Event]:
    from lorasmith.files import new_folder, write_bytes
    from lorasmith.generate.grid import merge

    stream = BytesIO()
    merge(pictures, height).save(stream, "PNG")
    new_folder(out.parent)
    write_bytes(out, stream.getvalue())
    yield Finished("merge", (out,), {"pictures": float(len(pictures))})
