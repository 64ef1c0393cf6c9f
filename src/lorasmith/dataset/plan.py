"""What ``lorasmith curate`` shall do: the plan's schema, and how a plan.toml is read.

All problems are reported in one error, each with its line and, for an unknown key, the nearest known one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lorasmith.errors import RecipeError
from lorasmith.files import sha256_file
from lorasmith.recipe.schema import Flag, Integer, Number, Section

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Colour = Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]
Aspect = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")]
BackgroundMode = Literal["keep", "blur", "plain", "gradient", "replace"]
Coordinate = Annotated[int, Field(ge=0, le=100_000)]


class OutputSection(Section):
    """How the new pictures are written."""

    format: Literal["png", "jpeg"] = Field(default="png", description="PNG keeps every pixel; JPEG is smaller.")
    quality: Integer = Field(default=95, ge=70, le=100, description="Of a JPEG; colours are never subsampled.")
    masks: Flag = Field(default=False, description="Also write each subject's mask, into OUT-masks.")
    sheets: Flag = Field(default=True, description="Also write before/after sheets, into OUT-sheets.")
    alpha: Literal["auto"] | Colour = Field(
        default="auto", description='What shows through transparent pixels: "#rrggbb", or auto: as the border is.'
    )


class DuplicatesSection(Section):
    """Pictures that are there twice, exactly or nearly."""

    drop: Flag = Field(default=True, description="Keep only the best of each group within a class.")


class CleanSection(Section):
    """Lines and text that were laid over a picture."""

    lines: Flag = Field(default=True, description="Remove thin straight lines that are sure to be strays.")
    text: Flag = Field(default=True, description="Remove overlaid text that is sure to be such.")
    sure: Number = Field(default=0.5, gt=0, le=1, description="The confidence from which on something is removed.")
    fill: Literal["auto", "telea", "ns", "patch"] = Field(
        default="auto", description="How holes are filled; auto tries each next to the hole and takes the best."
    )


class CropSection(Section):
    """Cutting a picture to its subject."""

    subject: Flag = Field(default=False, description="Cut the picture to its subject.")
    margin: Number = Field(default=0.08, ge=0, le=1, description="Left round it, as a share of its longer side.")


class ShapeSection(Section):
    """The size and shape of the new pictures."""

    mode: Literal["keep", "pad", "crop"] = Field(
        default="keep", description="Keep the shape, or pad or crop it to the nearest of the aspects."
    )
    aspects: tuple[Aspect, ...] = Field(
        default=("1:1",), min_length=1, max_length=32, description="Width to height of the buckets."
    )
    size: Integer | None = Field(
        default=None, ge=64, le=4096, description="A bucket has about size x size pixels; without it, as many as fit."
    )
    multiple: Integer = Field(default=8, ge=1, le=128, description="Both sides are multiples of it, in pixels.")
    enlarge: Number = Field(default=1.5, ge=1, le=8, description="A picture is enlarged at most this many times.")
    too_small: Literal["exclude", "keep"] = Field(
        default="keep", description="What happens to one that needs more: left out, or kept smaller than its bucket."
    )


class BackgroundSection(Section):
    """What is behind the subject."""

    mode: BackgroundMode = Field(default="keep", description="keep, blur, plain, gradient or replace.")
    finder: Literal["grabcut", "rembg"] = Field(
        default="grabcut", description="Who finds the subject: GrabCut, offline; or rembg, an extra to install."
    )
    sure: Number = Field(
        default=0.5, ge=0, le=1, description="Below this confidence in the subject, a picture is left as it is."
    )
    blur: Number = Field(default=0.03, gt=0, le=0.5, description="Sigma of the blur, as a share of the longer side.")
    colours: tuple[Colour, ...] = Field(
        default=(), max_length=64, description="For plain, one of them; for gradient, two; else as the border is."
    )
    pictures: tuple[Path, ...] = Field(
        default=(), description="For replace, one of them. A relative path starts at the plan file."
    )
    seed: Integer = Field(default=0, ge=0, description="Decides which picture gets which colour or background.")

    @model_validator(mode="after")
    def _enough(self) -> BackgroundSection:
        if self.mode == "replace" and not self.pictures:
            raise ValueError('mode "replace" needs pictures = ["..."]')
        return self


class ExposureSection(Section):
    """Brightness and contrast."""

    normalise: Flag = Field(default=False, description="Bring the subject's tones to a common range, gently.")
    strength: Number = Field(default=0.7, gt=0, le=1, description="How far; 1 is all the way.")


class MirrorSection(Section):
    """Mirrored copies."""

    copies: Flag = Field(
        default=False, description="Add a mirrored copy. Wrong for text and what has a left and right."
    )


class PictureSection(Section):
    """What is different for one picture; a key without a value is as for all."""

    skip: str | None = Field(default=None, description="Leave the picture out; the text is the reason.")
    keep: Flag = Field(default=False, description="Never drop it as a duplicate.")
    lines: Flag | None = Field(default=None, description="As clean.lines.")
    text: Flag | None = Field(default=None, description="As clean.text.")
    boxes: tuple[tuple[Coordinate, Coordinate, Coordinate, Coordinate], ...] = Field(
        default=(), description="Fill these: left, top, right, bottom in pixels of the upright source."
    )
    mask: Path | None = Field(default=None, description="Fill where this picture, of the same size, is not black.")
    crop: Flag | None = Field(default=None, description="As crop.subject.")
    shape: Literal["keep", "pad", "crop"] | None = Field(default=None, description="As shape.mode.")
    background: BackgroundMode | None = Field(default=None, description="As background.mode.")
    exposure: Flag | None = Field(default=None, description="As exposure.normalise.")
    mirror: Flag | None = Field(default=None, description="As mirror.copies.")


class Plan(Section):
    """Everything that is done to a folder of pictures."""

    version: Literal[1] = Field(default=1, description="Of this format.")
    output: OutputSection = OutputSection()
    duplicates: DuplicatesSection = DuplicatesSection()
    clean: CleanSection = CleanSection()
    crop: CropSection = CropSection()
    shape: ShapeSection = ShapeSection()
    background: BackgroundSection = BackgroundSection()
    exposure: ExposureSection = ExposureSection()
    mirror: MirrorSection = MirrorSection()
    pictures: dict[str, PictureSection] = Field(
        default={}, description='Exceptions, as [pictures."12.png"] or, of several classes, [pictures."axe/12.png"].'
    )

    @property
    def sha256(self) -> str:
        """A hash of everything the plan says, in hexadecimal; files it names count by what is in them.

        Raises:
            OSError: such a file cannot be read.
        """
        said = self.model_dump(mode="json")
        said["background"]["pictures"] = [sha256_file(path) for path in self.background.pictures]
        for name, each in self.pictures.items():
            said["pictures"][name]["mask"] = sha256_file(each.mask) if each.mask else None
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def load_plan(source: Path | None) -> Plan:
    """Return the plan in a TOML file, or the default plan; relative paths in it start at its folder.

    Raises:
        RecipeError: anything at all is wrong with it; everything is listed.
    """
    if source is None:
        return Plan()
    try:
        text = source.read_bytes().decode("utf-8-sig")
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise RecipeError("The plan is not UTF-8 text.", where=str(source), fix="Save it again as UTF-8.") from error
    except OSError as error:
        what = f"The plan cannot be read: {error.strerror}."
        raise RecipeError(what, where=str(source), fix="Check the path and its spelling.") from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        where = f"{source}:{line.group(1)}" if line else str(source)
        fix = "Mend that line; https://toml.io shows the format."
        raise RecipeError(f"The plan is not valid TOML: {error}.", where=where, fix=fix) from error
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, source, text) from None
    return _from_folder(plan, source.parent)


def _from_folder(plan: Plan, folder: Path) -> Plan:
    """Make the plan's paths start at its folder."""
    behind = plan.background.model_copy(update={"pictures": tuple(folder / p for p in plan.background.pictures)})
    pictures = {
        name: each.model_copy(update={"mask": folder / each.mask}) if each.mask else each
        for name, each in plan.pictures.items()
    }
    return plan.model_copy(update={"background": behind, "pictures": pictures})


def known_keys() -> list[str]:
    """Return every key of a plan as ``section.key``; those of one picture as ``pictures.NAME.key``."""
    keys = []
    for name, field in Plan.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += [f"{name}.{key}" for key in kind.model_fields]
        elif name == "pictures":
            keys += [f"pictures.NAME.{key}" for key in PictureSection.model_fields]
        else:
            keys.append(name)
    return keys


def _refusal(error: ValidationError, source: Path, text: str) -> RecipeError:
    problems = [_problem(detail, source, text) for detail in error.errors(include_url=False)]
    fix = "docs/curate.md lists every key with its bounds."
    if len(problems) == 1:
        return RecipeError(f"The plan cannot be used: {problems[0][1]}.", where=problems[0][0], fix=fix)
    lines = "".join(f"\n  - {where}: {what}" for where, what in problems)
    return RecipeError(f"The plan has {len(problems)} problems:{lines}", fix=fix)


def _problem(detail: ErrorDetails, source: Path, text: str) -> tuple[str, str]:
    names = [str(part) for part in detail["loc"] if isinstance(part, str)]
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must").removesuffix(".")
    if detail["type"] == "extra_forbidden":
        message = "unknown key" + _nearest(names)
    elif not isinstance(detail["input"], (dict, list)):
        message += f", not {detail['input']!r}"
    line = _line_of(text, names)
    return f"{source}:{line}" if line else str(source), f"{'.'.join(names)}: {message}"


def _nearest(names: list[str]) -> str:
    known = known_keys() + list(Plan.model_fields)
    wanted = ".".join(["pictures", "NAME", *names[2:]] if names[0] == "pictures" and len(names) > 2 else names)
    ends = {key.rpartition(".")[2]: key for key in reversed(known)}
    last = wanted.rpartition(".")[2]
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.75)
    close = close or [ends[e] for e in difflib.get_close_matches(last, list(ends), n=1, cutoff=0.6)]
    return f" (did you mean {close[0]}?)" if close else ""


def _line_of(text: str, names: list[str]) -> int | None:
    """Return the line on which a key stands, or the table it is in; the TOML parser keeps no positions."""
    table: list[str] = []
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?(.+?)\]\]?\s*(#.*)?$", line)
        entry = re.match(r"\s*([\w-]+|\"[^\"]*\"|'[^']*')\s*=", line)
        if header:
            table = path = [a or b or c for a, b, c in re.findall(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)", header.group(1))]
        elif entry:
            path = [*table, entry.group(1).strip("\"'")]
        else:
            continue
        if names[: len(path)] == path and (best is None or len(path) > best[0]):
            best = (len(path), number)
    return best[1] if best else None


@dataclass(frozen=True)
class Choice:
    """What counts for one picture; the fields are those of ``PictureSection``, none of them open."""

    skip: str | None
    keep: bool
    lines: bool
    text: bool
    boxes: tuple[tuple[int, int, int, int], ...]
    mask: Path | None
    crop: bool
    shape: Literal["keep", "pad", "crop"]
    background: BackgroundMode
    exposure: bool
    mirror: bool


def choice_for(plan: Plan, names: Sequence[str]) -> Choice:
    """Return what counts for a picture that goes by any of ``names``: its exceptions laid over the plan."""
    own = next((plan.pictures[name] for name in names if name in plan.pictures), PictureSection())
    return Choice(
        skip=own.skip,
        keep=own.keep,
        lines=plan.clean.lines if own.lines is None else own.lines,
        text=plan.clean.text if own.text is None else own.text,
        boxes=own.boxes,
        mask=own.mask,
        crop=plan.crop.subject if own.crop is None else own.crop,
        shape=own.shape or plan.shape.mode,
        background=own.background or plan.background.mode,
        exposure=plan.exposure.normalise if own.exposure is None else own.exposure,
        mirror=plan.mirror.copies if own.mirror is None else own.mirror,
    )
