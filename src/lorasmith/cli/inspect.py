"""``lorasmith inspect``: what is in a file of weights, told without loading or running it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lorasmith.events import Event
    from lorasmith.model.file_report import Report
    from lorasmith.model.inspection import Options

_LARGE = 64 << 20  # bytes; smaller files are read at once and need no progress bars
_FORMAT = 1  # of the JSON; grows when a field changes its meaning or goes


@click.command("inspect", short_help="Say what is in files of weights.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE_OR_FOLDER...")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--no-hash", is_flag=True, help="Leave out the hashes, for which a file is read from end to end.")
@click.option("--quick", is_flag=True, help="Read the list of contents only: no hashes, EMA distances or norms.")
@click.option("--check-weights", is_flag=True, help="Read every weight, looking for NaN and infinity.")
def command(paths: tuple[Path, ...], as_json: bool, no_hash: bool, quick: bool, check_weights: bool) -> None:
    """Say what files of weights are: kind, architecture, layout, number formats, sizes, EMA, hashes, how they were
    trained if they say so, and whether they are safe to open. Nothing of a file is ever run, and no model is loaded.

    For a LoRA also its rank, alpha, targets and how much it changes each block. A folder may be a model in the
    diffusers layout, or hold any number of files.

    The exit code is 0 when all is well, 1 when something is wrong with the weights, and 2 when a file is unsafe,
    damaged or no file of weights.

    \b
    Examples:
      lorasmith inspect v1-5-pruned.ckpt
      lorasmith inspect runs/axe-001/lora.safetensors models/stable-diffusion-v1-5
      lorasmith inspect --quick --json models/Lora
    """
    from lorasmith.cli.inspect_view import draw
    from lorasmith.cli.screen import print_json
    from lorasmith.errors import LorasmithError
    from lorasmith.model.inspection import Options

    options = Options(hashes=not (no_hash or quick), compare=not quick, check_weights=check_weights)
    reports, errors = [], []
    for path in paths:
        try:
            reports.append(_run(path, options, silent=as_json))
        except LorasmithError as error:
            errors.append(error)
            if not as_json:
                click.echo(f"Error: {error}", err=True)
            continue
        if not as_json:
            click.echo(draw(reports[-1]), nl=False)
    if as_json:
        failed = [{"what": e.what, "where": e.where, "fix": e.fix} for e in errors]
        print_json({"format": _FORMAT, "inspected": [r.to_json() for r in reports], "errors": failed})
    files = [file for report in reports for file in report.files]
    if errors or any(file.verdict != "safe" for file in files):
        click.get_current_context().exit(2)
    if any(file.findings for file in files):
        click.get_current_context().exit(1)


def _run(path: Path, options: Options, *, silent: bool) -> Report:
    """Inspect one path; progress is drawn only where there is much to read."""
    from lorasmith.cli.screen import show
    from lorasmith.model.inspection import inspect

    reports: list[Report] = []

    def steps() -> Generator[Event, None, None]:
        reports.append((yield from inspect(path, options)))

    if silent or not _much(path):
        for _ in steps():
            pass
    else:
        show(steps())
    return reports[0]


def _much(path: Path) -> bool:
    try:
        files = [path] if path.is_file() else [p for pattern in ("*", "*/*") for p in path.glob(pattern)]
        return any(file.stat().st_size >= _LARGE for file in files)
    except OSError:
        return False
