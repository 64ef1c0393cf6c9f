"""Pictures beside each other: a grid with labelled axes, and a plain strip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasmith.errors import RecipeError
from lorasmith.events import Event, Finished, Progress
from lorasmith.files import new_folder, write_bytes
from lorasmith.generate.generate import UsedLora, fused, use_lora
from lorasmith.generate.sample import Picture, Request, check_requests, sample

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from lorasmith.model.stable_diffusion import StableDiffusion

_INK, _PAPER, _FAINT = (24, 24, 27), (255, 255, 255), (113, 113, 122)
_REQUEST_AXES = {"prompt": str, "seed": int, "guidance": float, "steps": int, "sampler": str}
_LORA_AXES = {"checkpoint": str, "lora": str, "weight": float}
AXES = (*_REQUEST_AXES, *_LORA_AXES)
_STRIP_PIXELS = 200_000_000  # 600 MB
NO_LORA = "base"  # as a value of a checkpoint or lora axis: the base alone


@dataclass(frozen=True)
class Axis:
    """What changes along the columns or the rows of a grid.

    Attributes:
        name: one of ``AXES``.
        values: in order; for "checkpoint" and "lora" paths, or "base" for none.
    """

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """What is written at each column or row."""
        if self.name in ("checkpoint", "lora"):
            return tuple(Path(v).name if Path(v).suffix != ".safetensors" else Path(v).stem for v in self.values)
        if self.name == "prompt":
            return self.values
        return tuple(f"{self.name} {v:g}" if isinstance(v, float) else f"{self.name} {v}" for v in self.values)


@dataclass(frozen=True)
class Cell:
    """One picture of a grid: where it stands, what it shows, and with which LoRA at which weight."""

    row: int
    column: int
    request: Request
    lora: Path | None
    weight: float


def parse_axis(text: str) -> Axis:
    """Return the axis that ``name=value,value,...`` says; in a prompt axis the values are parted by ``|``.

    Raises:
        RecipeError: no such axis, no values, or values of another kind.
    """
    name, _, rest = text.partition("=")
    name = name.strip()
    kind = {**_REQUEST_AXES, **_LORA_AXES}.get(name)
    values = [v.strip() for v in rest.split("|" if name == "prompt" else ",") if v.strip()]
    fix = f"Write NAME=VALUE,VALUE,... with a name among {', '.join(AXES)} (prompt=FIRST|SECOND)."
    if kind is None or not values:
        raise RecipeError(f'"{text}" is not an axis of a grid.', fix=fix)
    try:
        axis = Axis(name, tuple(kind(v) for v in values))
        if not all(math.isfinite(v) for v in axis.values if isinstance(v, float)):
            raise ValueError
        return axis
    except ValueError as error:
        raise RecipeError(f'"{text}" has a value that is not a number.', fix=fix) from error


def plan(
    columns: Axis, rows: Axis | None, base: Request, *, lora: Path | None = None, weight: float = 1.0
) -> list[Cell]:
    """Return the cells of a grid, row by row; what no axis changes is as in ``base``, ``lora`` and ``weight``.

    Raises:
        RecipeError: the axes contradict each other.
    """
    axes = [columns, *([rows] if rows else [])]
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names) or {"checkpoint", "lora"} <= set(names):
        raise RecipeError(f"A grid cannot have {' and '.join(names)} as its axes.", fix="Choose two different axes.")
    if "weight" in names and lora is None and not {"checkpoint", "lora"} & set(names):
        raise RecipeError("A weight axis needs a LoRA.", fix="Name one with --lora, or on the other axis.")
    cells = []
    for row, row_value in enumerate(rows.values if rows else (None,)):
        for column, column_value in enumerate(columns.values):
            values = {columns.name: column_value, **({rows.name: row_value} if rows else {})}
            request = replace(base, **{f.name: values[f.name] for f in fields(Request) if f.name in values})
            chosen = values.get("checkpoint", values.get("lora", lora))
            file = None if chosen is None or str(chosen) == NO_LORA else Path(chosen)
            cells.append(Cell(row, column, request, file, float(values.get("weight", weight))))
    return cells


def make_grid(
    sd: StableDiffusion,
    columns: Axis,
    rows: Axis | None,
    base: Request,
    out: Path,
    *,
    lora: Path | None = None,
    weight: float = 1.0,
    batch: int = 4,
) -> Iterator[Event]:
    """Draw every cell and write the labelled grid as one PNG, ``out``.

    All LoRAs are read and checked before anything is drawn. Memory: every picture until the end, and each LoRA once.

    Yields:
        Progress for each picture, then Finished.

    Raises:
        RecipeError, LoraError, OutputError, DeviceError: as ``generate``.
    """
    cells = plan(columns, rows, base, lora=lora, weight=weight)
    check_requests(sd, [cell.request for cell in cells])
    new_folder(out.parent)
    files = {cell.lora: use_lora(cell.lora) for cell in cells if cell.lora}
    for used in files.values():
        used.lora.check_fits(sd)
    pictures: dict[tuple[int, int], Picture] = {}
    yield Progress("grid", 0, len(cells))
    for file, strength in dict.fromkeys((cell.lora, cell.weight) for cell in cells):
        group = [cell for cell in cells if (cell.lora, cell.weight) == (file, strength)]
        loras = [UsedLora(files[file].lora, replace(files[file].note, weight=strength))] if file else []
        with fused(sd, loras):
            for i, picture in sample(sd, [cell.request for cell in group], batch=batch):
                pictures[group[i].row, group[i].column] = picture
                yield Progress("grid", len(pictures), len(cells))
    ordered = [[pictures[r, c] for c in range(len(columns.values))] for r in range(len(rows.values) if rows else 1)]
    image = grid(ordered, columns=columns.labels, rows=rows.labels if rows else (), title=_title(columns, rows, base))
    stream = BytesIO()
    image.save(stream, "PNG")
    write_bytes(out, stream.getvalue())
    yield Finished("grid", (out,), {"pictures": float(len(cells))})


def _title(columns: Axis, rows: Axis | None, base: Request) -> str:
    names = {columns.name, rows.name if rows else ""}
    words = [] if "prompt" in names else [base.prompt]
    stated = {"seed": base.seed, "steps": base.steps, "guidance": f"{base.guidance:g}", "sampler": base.sampler}
    return " · ".join([*words, *(f"{name} {value}" for name, value in stated.items() if name not in names)])


def grid(
    pictures: Sequence[Sequence[Picture]],
    *,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    title: str = "",
    gap: int | None = None,
) -> Image.Image:
    """Return pictures in rows and columns with their labels, on white.

    Args:
        pictures: rows of pictures (H, W, 3) uint8; a cell is as large as the largest, and pictures are centred in it.
        columns, rows: labels above and at the left; empty for none.
        title: one line of smaller, grey text on top.
        gap: pixels between pictures; None is a fortieth of a cell.
    """
    from PIL import Image, ImageDraw

    width = max(p.shape[1] for row in pictures for p in row)
    height = max(p.shape[0] for row in pictures for p in row)
    across = max(len(row) for row in pictures)
    gap = max(width // 40, 3) if gap is None else gap
    margin = min(max(width // 16, 8), 32)
    font, small = _font(min(max(width // 12, 13), 40)), _font(min(max(width // 16, 11), 28))
    head = [_wrapped(label, font, width) for label in columns]
    side = [_wrapped(label, font, max(width, 120)) for label in rows]
    left = margin + (max(_text_size(text, font)[0] for text in side) + margin if side else 0)
    total = left + across * (width + gap) - gap + margin
    top_line = _wrapped(title, small, total - left - margin) if title else ""
    top = margin + (_text_size(top_line, small)[1] + margin if title else 0)
    top += max(_text_size(text, font)[1] for text in head) + margin // 2 if head else 0
    image = Image.new("RGB", (total, top + len(pictures) * (height + gap) - gap + margin), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.multiline_text((left, margin), top_line, fill=_FAINT, font=small)
    for c, text in enumerate(head):
        x = left + c * (width + gap) + width / 2
        draw.multiline_text((x, top - margin // 2), text, fill=_INK, font=font, anchor="md", align="center")
    for r, row in enumerate(pictures):
        y = top + r * (height + gap)
        if side:
            at = (left - margin, y + height / 2)
            draw.multiline_text(at, side[r], fill=_INK, font=font, anchor="rm", align="right")
        for c, picture in enumerate(row):
            x = left + c * (width + gap)
            corner = (x + (width - picture.shape[1]) // 2, y + (height - picture.shape[0]) // 2)
            image.paste(Image.fromarray(picture), corner)
    return image


def merge(pictures: Sequence[Picture], height: int | None = None) -> Image.Image:
    """Return pictures side by side without gaps or labels, all scaled to ``height`` (None is the lowest picture's).

    Raises:
        RecipeError: the strip would not fit into memory.
    """
    from PIL import Image

    height = height or min(p.shape[0] for p in pictures)
    pixels = sum(height * p.shape[1] * height // p.shape[0] for p in pictures)
    if pixels > _STRIP_PIXELS:
        raise RecipeError(
            f"The strip would have {pixels:,} pixels; {_STRIP_PIXELS:,} are the limit.", fix="Choose a smaller height."
        )
    scaled = []
    for picture in pictures:
        image = Image.fromarray(picture)
        width = max(round(image.width * height / image.height), 1)
        scaled.append(image if image.height == height else image.resize((width, height), Image.Resampling.LANCZOS))
    strip = Image.new("RGB", (sum(image.width for image in scaled), height))
    x = 0
    for image in scaled:
        strip.paste(image, (x, 0))
        x += image.width
    return strip


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _text_size(text: str, font: Any) -> tuple[int, int]:
    from PIL import Image, ImageDraw

    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return round(right - left), round(bottom - min(top, 0))


def _wrapped(text: str, font: Any, width: int) -> str:
    """Return the text with line ends where it would be wider than ``width`` pixels; longer words are cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font.getlength(word) > width and len(word) > 2:
            word = word[:-2] + "…"
        lines += [word]
    return "\n".join(line for line in lines if line)
