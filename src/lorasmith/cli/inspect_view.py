"""Draw what ``lorasmith inspect`` found out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lorasmith.model.file_report import FileReport, Report
    from lorasmith.model.lora_report import LoraReport

_BAR = 24
_BLOCKS_LISTED = 20
_NAMES_LISTED = 12
_MAX_LINE = 2000


def draw(report: Report) -> str:
    """Return a report as text for the terminal, with its colours if it has any, no wider than it is."""
    console = Console(highlight=False)
    with console.capture() as captured:
        whole = len(report.files) > 1 or report.pipeline
        for item in _folder(report) if whole else _file(report.files[0], console):
            console.print(item)
    return captured.get()


def _file(file: FileReport, console: Console) -> Iterator[RenderableType]:
    """Draw one file: what it is, its parts, a LoRA's blocks, and what it says of itself."""
    yield _title(str(file.path))
    yield _pairs(_facts(file))
    if len(file.parts) > 1:
        yield _parts(file)
    if file.lora is not None and file.lora.blocks and not file.lora.is_zero:
        yield _blocks(file.lora, console)
    if file.stated:
        yield _title("", "What it says of itself")
        yield _pairs(file.stated.items())
    yield from _ending(file)


def _facts(file: FileReport) -> Iterator[tuple[str, str]]:
    """Return what is known of a file, as labels and texts."""
    architecture = file.architecture
    if architecture.kind != "unknown":
        yield "what", f"{architecture}{_use(file)}"
        if architecture.note:
            yield "", architecture.note
    elif file.verdict == "safe":
        yield "what", "no model of a known kind"
    if architecture.layout or file.container:
        layout = {"original": "original (CompVis, Stability)", "peft": "PEFT"}.get(architecture.layout)
        yield "layout", ", ".join(filter(None, (layout or architecture.layout, file.container)))
    yield "safe to open", _safety(file)
    if file.verdict == "safe":
        count = sum(part.parameters for part in file.parts)
        yield "size", f"{_size(file.size)}, {count:,} parameters in {_dtypes(file)}"
    else:
        yield "size", _size(file.size)
    if file.ema is not None:
        yield "EMA", _ema(file)
    if file.lora is not None:
        yield from _lora(file.lora)
    if file.scalars:
        yield "numbers", ", ".join(_scalar(name, value) for name, value in list(file.scalars.items())[:8])
    if file.left_out:
        yield "also inside", f"{_listed(file.left_out)} (never read)"
    if file.not_finite is not None:
        yield "NaN, infinity", f"{len(file.not_finite)} tensors" if file.not_finite else "none"
    yield from _hashes(file)


def _use(file: FileReport) -> str:
    kind, supported = file.architecture.kind, file.architecture.supported
    if not supported and kind != "other":
        return "; lorasmith cannot use it"
    ways = {"base": "use it as `base`", "lora": "use it with --lora", "vae": "use it as `vae`"}
    return f"; {ways[kind]}" if kind in ways else ""


def _safety(file: FileReport) -> str:
    names = f"; it asks for {_listed(file.pickle_globals)}" if file.pickle_globals else ""
    if file.verdict == "safe":
        return f"yes: a pickle, of tensors and plain values only{names}" if file.container != "safetensors" else "yes"
    place = f" The place: {file.place}." if file.place else ""
    others = tuple(name for name in file.pickle_globals if name not in file.reason)
    more = f" It names {_listed(others)} too." if others else ""
    answer = {"unsafe": "NO, it is UNSAFE", "damaged": "no, it is damaged"}.get(file.verdict, "not opened")
    return f"{answer}. {file.reason}{place}{more}"


def _ema(file: FileReport) -> str:
    ema = file.ema
    assert ema is not None
    if not ema.weights:
        text = f"{ema.tensors} tensors, and nothing but them: the weights themselves are not in the file"
    else:
        text = f"{ema.tensors} tensors of a moving average beside {ema.weights} weights"
    if ema.distance is not None:
        text += f"; they differ by {ema.distance:.3%} (relative L2)"
    if ema.decay is not None:
        text += f"; decay {ema.decay:g}"
    return text + (f", {ema.updates:,} updates" if ema.updates is not None and ema.updates >= 0 else "")


def _lora(lora: LoraReport) -> Iterator[tuple[str, str]]:
    ranks = ", ".join(f"{rank} ({n} layers)" if len(lora.ranks) > 1 else f"{rank}" for rank, n in lora.ranks.items())
    alphas = ", ".join(f"{a:g} ({n} layers)" if len(lora.alphas) > 1 else f"{a:g}" for a, n in lora.alphas.items())
    yield "rank", ranks
    yield "alpha", alphas if lora.alpha_stated else f"{alphas} (not stated, so it counts as the rank)"
    name = f'"{lora.recipe_targets}": ' if lora.recipe_targets else ""
    yield "targets", name + ", ".join(f"{kind} ({count})" for kind, count in lora.targets.items())
    zero = "NOTHING: all of it is zero" if lora.is_zero else f"norm {lora.norm:.4g} over {lora.modules} layers"
    yield "changes", zero


def _hashes(file: FileReport) -> Iterator[tuple[str, str]]:
    if file.hashes is None:
        return
    yield "SHA-256", file.hashes.sha256
    short = [f"{file.hashes.autov2} (AutoV2: Civitai, AUTOMATIC1111)"]
    if file.hashes.autov1:
        short.append(f"{file.hashes.autov1} (AutoV1: old AUTOMATIC1111)")
    if file.hashes.autov3 and file.architecture.kind in ("lora", "embedding"):
        short.append(f"{file.hashes.autov3} (AutoV3: of the weights alone)")
    yield "short hashes", "\n".join(short)


def _parts(file: FileReport) -> Table:
    table = _table("part", ">tensors", ">parameters", ">size", "numbers")
    for part in file.parts:
        dtypes = ", ".join(f"{dtype} ({count})" for dtype, count in part.dtypes.items())
        _row(table, part.name, f"{part.tensors:,}", f"{part.parameters:,}", _size(part.bytes), dtypes)
    return table


def _blocks(lora: LoraReport, console: Console) -> Table:
    """Draw how much a LoRA changes each block, with a bar as long as its norm."""
    mark = "█" if "utf" in console.encoding.lower() else "#"
    most = max(block.norm for block in lora.blocks) or 1.0
    table = _table("block", ">layers", ">norm", ">largest layer", "")
    for block in lora.blocks[:_BLOCKS_LISTED]:
        bar = mark * max(round(_BAR * block.norm / most), int(block.norm > 0))
        _row(table, block.block, str(block.modules), f"{block.norm:.4g}", f"{block.largest:.4g}", bar)
    if (more := len(lora.blocks) - _BLOCKS_LISTED) > 0:
        _row(table, f"and {more} more", "", "", "", "")
    return table


def _folder(report: Report) -> Iterator[RenderableType]:
    """Draw a folder: a row for each file."""
    yield _title(str(report.path), report.pipeline)
    settings = {name.replace("_", " ").strip(): str(value) for name, value in report.settings.items()}
    if settings:
        settings = {"scheduler" if name == "class name" else name: value for name, value in settings.items()}
        yield _pairs([("noise", ", ".join(f"{name} {value}" for name, value in settings.items()))])
    table = _table("file", "what", ">parameters", ">size", "numbers", "safe", ">AutoV2")
    for file in report.files:
        name = file.path.name
        if file.folder_part:
            plain = re.fullmatch("(diffusion_pytorch_model|model).safetensors", name)
            name = file.folder_part if plain else f"{file.folder_part}/{name}"
        known = file.architecture.kind != "unknown" or file.verdict == "safe"
        _row(
            table,
            name,
            str(file.architecture).replace("Stable Diffusion", "SD") if known else "-",
            f"{sum(part.parameters for part in file.parts):,}",
            _size(file.size),
            _dtypes(file).replace("bfloat", "bf").replace("float", "fp") or "-",
            "yes" if file.verdict == "safe" else file.verdict.upper() if file.verdict == "unsafe" else "no",
            file.hashes.autov2 if file.hashes else "-",
        )
    yield table
    for file in report.files:
        if file.verdict != "safe":
            yield _text(f"{file.path.name}: {_safety(file)}", "bold red")
        yield from _ending(file, name=True)
    yield _text("Name one of the files for more about it.", "dim")


def _ending(file: FileReport, *, name: bool = False) -> Iterator[RenderableType]:
    for finding in file.findings:
        yield _text(f"! {f'{file.path.name}: ' if name else ''}{finding}", "bold red")
    if file.fix:
        yield _text(f"To do: {file.fix}", "yellow")
    if not name:
        yield ""


def _title(path: str, what: str = "") -> RenderableType:
    return Text.assemble((_clean(path), "bold"), "  " if path and what else "", (_clean(what), "bold cyan"))


def _text(text: str, style: str) -> RenderableType:
    return Text(_clean(text), style=style)


def _pairs(pairs: Iterable[tuple[str, str]]) -> RenderableType:
    """Return labels on the left and texts on the right, which wrap."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in pairs:
        alarming = text.startswith(("NO", "no,", "not opened"))
        table.add_row(Text(f"  {_clean(label)}"), Text(_clean(text), style="bold red" if alarming else ""))
    return table


def _table(*names: str) -> Table:
    """Return an empty table; a column whose name begins with ">" is one of numbers, on the right."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1))
    for name in names:
        number = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(_clean(cell)) for cell in cells))


def _clean(text: str) -> str:
    """Return text without what could steer the terminal: much of it is a stranger's."""
    from lorasmith.model.file_facts import printable

    return "\n".join(printable(line, _MAX_LINE) for line in text.split("\n"))


def _dtypes(file: FileReport) -> str:
    counts: dict[str, int] = {}
    for part in file.parts:
        for dtype, count in part.dtypes.items():
            counts[dtype] = counts.get(dtype, 0) + count
    return ", ".join(sorted(counts, key=lambda dtype: -counts[dtype]))


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES_LISTED} more" if len(names) > _NAMES_LISTED else ""
    return ", ".join(names[:_NAMES_LISTED]) + more


def _scalar(name: str, value: object) -> str:
    return f"{name} {value:,}" if type(value) is int else f"{name} {value}"


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:,.2f} {unit}" if unit == "GiB" else f"{count / size:,.1f} {unit}"
    return f"{count:,} bytes"
