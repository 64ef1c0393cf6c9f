"""The verb ``new``: a project folder with a recipe that suits the pictures, and says why."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorasmith.dataset.caption_edit import with_articles
from lorasmith.dataset.caption_lint import holds_word
from lorasmith.dataset.finding import shown
from lorasmith.dataset.folder import Folder
from lorasmith.dataset.read import Dataset, read_dataset
from lorasmith.errors import OutputError, RecipeError
from lorasmith.events import Event, Finished, Note, Warned
from lorasmith.files import new_folder, write_new
from lorasmith.recipe.dump import toml_value
from lorasmith.recipe.load import load_recipe
from lorasmith.recipe.schema import is_safe_name
from lorasmith.starter.paths import starter_folder

RECIPE, PICTURES = "recipe.toml", "pictures"
_VIEWS = 50  # how often each picture is seen: 1,000 steps of 4 pictures for 80 of them, as the default preset has it
_BATCH = 4
_FEWEST_STEPS, _MOST_STEPS = 300, 3000
_USUAL_SIZE = 512  # pixels; of SD 1.x, for bases whose settings are not at hand
_FEW, _HOLD_OUT_FROM = 30, 20  # pictures
_TRIGGER = 0.8  # the share of a class's captions that begin with the same words before a comma
_CLASSES_SAMPLED = 4


@dataclass(frozen=True)
class Choice:
    """One line of the recipe: key, value, and why. A value of None is written as a comment."""

    key: str
    value: object
    why: str


def new_project(project: Path, folders: Sequence[Path], *, base: str = "starter", trigger: str = "") -> Iterator[Event]:
    """Make a project folder with a commented recipe for folders of pictures; nothing is overwritten.

    Args:
        project: the new folder; its name becomes the LoRA's.
        folders: folders of pictures, one class each; without any, an empty one is made.
        base: the recipe's base.
        trigger: the trigger word, where the captions do not show one.

    Raises:
        RecipeError: the name cannot name a LoRA, or a recipe cannot name the folders or the base.
        DataError: a folder cannot be used.
        OutputError: the project is already there, or cannot be written.
    """
    name = Path(os.path.abspath(project)).name  # noqa: PTH100 -- resolve() loses a link's name
    if not is_safe_name(name):
        fix = "Use letters, digits, '.', '_' and '-' only, at most 64."
        raise RecipeError(f"{shown(name)!r} cannot name a LoRA.", where="NAME", fix=fix)
    if project.exists() and (not project.is_dir() or any(project.iterdir())):
        fix = "Choose another name; nothing is overwritten."
        raise OutputError("The project is already there.", where=str(project), fix=fix)
    load_recipe(None, folders=folders, base=base)  # refuses what a recipe cannot name
    dataset = None
    if folders:
        yield Note("Looking at the pictures ...")
        dataset = read_dataset(folders)
    new_folder(project)
    named = [_from(project, folder) for folder in folders] or [PICTURES]
    named_base = (
        _from(project, Path(base).expanduser()) if base != "starter" and Path(base).expanduser().exists() else base
    )
    text = recipe_text(name, named, dataset, base=named_base, size=base_size(base), trigger=trigger)
    if not write_new(project / RECIPE, text.encode("utf-8")):
        raise OutputError("The recipe is already there.", where=str(project / RECIPE), fix="Choose another name.")
    files = (project / RECIPE,) if folders else (project / RECIPE, new_folder(project / PICTURES))
    if dataset is not None:
        classes = ", ".join(f"{shown(label)} ({count})" for label, count in dataset.classes.items())
        yield Note(f"{len(dataset.examples)} pictures in {_classes(len(dataset.classes))}: {classes}.")
        doubtful = sum(f.severity != "info" for f in dataset.findings)
        if doubtful:
            yield Warned(f"{doubtful} things in the data are wrong or doubtful; lorasmith check says which.")
        without = sum(not holds_word(e.caption, trigger) for e in dataset.examples) if trigger else 0
        if without:
            what = f'{without} of {len(dataset.examples)} captions lack the trigger "{shown(trigger)}"'
            yield Warned(f"{what}; to put it before them: lorasmith caption FOLDER --trigger {shown(trigger)}")
    yield Note(f"Next: lorasmith check {project / RECIPE}, then lorasmith train {project / RECIPE}")
    yield Finished("new", files, {"pictures": float(len(dataset.examples) if dataset else 0)})


def _classes(count: int) -> str:
    return "one class" if count == 1 else f"{count} classes"


def recipe_text(
    name: str,
    folders: Sequence[str],
    dataset: Dataset | None,
    *,
    base: str,
    size: tuple[int, bool],
    trigger: str = "",
) -> str:
    """Return a recipe in TOML with a comment on every line.

    Args:
        name: of the LoRA.
        folders: as the recipe names them.
        dataset: what lies in them; None if that is not known yet.
        base: as the recipe names it.
        size: see ``base_size``.
        trigger: the trigger word, where the captions do not show one.
    """
    sections: dict[str, list[Choice]] = {
        "": [
            Choice("version", 1, "the version of this format"),
            Choice("name", name, "the name of the LoRA and of its run folders"),
            Choice("base", base, 'the model to adapt: "starter" (built in), a folder, a file, or a hub id'),
        ],
        "data": _data(folders, dataset, base, size),
        "lora": _lora(dataset),
        "train": _train(dataset),
        "samples": _samples(dataset, trigger),
    }
    lines = ["# A lorasmith recipe. docs/recipe.md lists every key; those left out keep their defaults.", ""]
    if dataset is None:
        lines[1:1] = [f"# Put pictures into {PICTURES}/, one folder for each class, with captions in metadata.jsonl."]
    for section, choices in sections.items():
        lines += ["", f"[{section}]"] if section else []
        for choice in choices:
            lines.append(f"# {choice.why}")
            unset = choice.value is None
            lines.append(f"# {choice.key} = ..." if unset else f"{choice.key} = {toml_value(choice.value)}")
    return "\n".join(lines) + "\n"


def _data(folders: Sequence[str], dataset: Dataset | None, base: str, base_side: tuple[int, bool]) -> list[Choice]:
    size, known = base_side
    resolution, why = size, f"the side of the training pictures in pixels: the size {shown(base)} was made for"
    if not known:
        why = f"the side of the training pictures in pixels: {size} suits bases of the kind of SD 1.5"
    classes = "one class for each folder"
    validation = Choice("validation", 0.1, "the share held out, to see whether the LoRA learns or only remembers")
    balance = "draw every class equally often, however many pictures it has"
    if dataset is not None:
        sides = np.array([min(e.width, e.height) for e in dataset.examples])
        fitting = int(np.percentile(sides, 10)) // 64 * 64
        if 64 <= fitting < size:
            resolution, why = fitting, f"a tenth of the pictures is smaller than {size}, the base's size; so they fit"
        small = int((sides < resolution).sum())
        why += f"; {small} of {len(sides)} pictures are smaller and get enlarged" if small else ""
        classes = "the classes: " + ", ".join(f"{shown(k)} with {n} pictures" for k, n in dataset.classes.items())
        if len(dataset.examples) < _HOLD_OUT_FROM:
            validation = Choice("validation", 0.0, "so few pictures are all needed; 0.1 would hold a tenth of them out")
        if (counts := sorted(dataset.classes.values())) and len(counts) > 1:
            balance += f" (here {counts[0]} to {counts[-1]})"
    return [
        Choice("folders", list(folders), f"{classes}; paths start at this file"),
        Choice("resolution", resolution, why),
        Choice("flip", False, "true also trains on mirror images: wrong for what has a left and a right, such as text"),
        validation,
        Choice("balance", "class", balance),
    ]


def _lora(dataset: Dataset | None) -> list[Choice]:
    few = dataset is not None and len(dataset.examples) < _FEW
    rank = 8 if few else 16
    why = "how much the LoRA can hold: " + ("8, since few pictures are soon learned by heart" if few else "16 is usual")
    return [Choice("rank", rank, why), Choice("alpha", rank, "scales what is learned by alpha / rank; equal is usual")]


def _train(dataset: Dataset | None) -> list[Choice]:
    count = len(dataset.examples) if dataset else 0
    steps = round(count * _VIEWS / _BATCH / 100) * 100 if count else 1000
    steps = min(_MOST_STEPS, max(_FEWEST_STEPS, steps))
    why = "optimizer steps; each picture is seen about 50 times with 80 pictures"
    if count:
        why = f"optimizer steps; each of the {count} pictures is seen about {steps * _BATCH / count:.0f} times"
    return [
        Choice("steps", steps, why),
        Choice("batch", _BATCH, "pictures in one step; with too little memory take 1, and accumulation = 4"),
        Choice("learning_rate", 2e-4, "how fast it learns; halve it if the samples turn noisy or all alike"),
        Choice("save_every", steps // 5, "steps between checkpoints, each with samples, to choose the best from"),
    ]


def _samples(dataset: Dataset | None, trigger: str) -> list[Choice]:
    why = "drawn from the base and at every checkpoint, so that you see what the LoRA changes"
    if dataset is None:
        return [Choice("prompts", None, f"{why}; without any, the commonest captions")]
    prompts, told = [], []
    for label in list(dataset.classes)[:_CLASSES_SAMPLED]:
        captions = [e.caption for e in dataset.examples if e.label == label]
        words = Folder(Path(label), label).words
        found = trigger or trigger_of(captions)
        plain = with_articles(f"a {words}") if any(holds_word(c, words) for c in captions) else ""
        prompts.append(", ".join(dict.fromkeys(p for p in (found, plain) if p)) or _commonest(captions))
        told += [f'{shown(label)} is called by "{shown(found)}"'] if found else []
    if told:
        why += f"; {', '.join(told)}"
    return [Choice("prompts", prompts, why)]


def trigger_of(captions: Sequence[str]) -> str:
    """Return the word or two, before a comma, that most captions begin with; nothing if there are no such words."""
    starts = Counter(c.partition(",")[0].strip() for c in captions if "," in c)
    if not starts:
        return ""
    start, count = starts.most_common(1)[0]
    short = 0 < len(start.split()) <= 2 and not re.match(r"(an?|the)\b", start, re.IGNORECASE)
    return start if short and count >= _TRIGGER * len(captions) else ""


def _commonest(captions: Sequence[str]) -> str:
    return Counter(captions).most_common(1)[0][0]


def base_size(base: str) -> tuple[int, bool]:
    """Return the side in pixels that a base was made for, and whether that is known or only usual."""
    folder = starter_folder() if base == "starter" else Path(base).expanduser()
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1), True
    except (OSError, ValueError, KeyError, TypeError):
        return _USUAL_SIZE, False


def _from(project: Path, folder: Path) -> str:
    """Return a folder's path as the recipe names it: from the project, or whole where there is no way."""
    try:
        return Path(os.path.relpath(folder, project)).as_posix()
    except ValueError:  # on another drive of Windows
        return Path(os.path.abspath(folder)).as_posix()  # noqa: PTH100
