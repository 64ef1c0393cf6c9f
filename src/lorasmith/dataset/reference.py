"""The page of all findings, made from the table of kinds: ``python -m lorasmith.dataset.reference docs/check.md``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from lorasmith.dataset import judge, measures, variety
from lorasmith.dataset.finding import KINDS
from lorasmith.dataset.kinds import Kind
from lorasmith.files import write_text

_HEAD = """# What `lorasmith check` finds

<!-- Made from src/lorasmith/dataset/kinds*.py by `python -m lorasmith.dataset.reference docs/check.md`. -->

    lorasmith check pictures/axe
    lorasmith check pictures/axe pictures/spear --trigger blossomstyle
    lorasmith check recipe.toml --out axe-check
    lorasmith check pictures.zip --resolution 1024 --json

`check` looks at every picture and caption, before any model is loaded, and changes nothing. It prints a summary and
writes `findings.json`, for machines, and `check.html`, one page with thumbnails, into `lorasmith-check` or the folder
after `--out`. The exit code is 0 when there are no errors, 1 when there are, and 2 when it could not run.
A second run reads from a cache what has not changed: 400 pictures of 1 megapixel, half of them textures that are hard
to tell from writing, took 6 s on two cores with AVX-512 and 0.5 s the second time
([measured](../benchmarks/results/check-speed.md)); on two older cores 13 to 16 s and 1.6 s.

It understands, alone and mixed: `metadata.jsonl`, `.csv` and `.parquet` (Hugging Face ImageFolder; Parquet needs
pyarrow), `.txt` and `.caption` files beside the pictures, kohya's `10_name` folders, plain folders of pictures (the
folder's name is the class), folders of class folders, several folders, a recipe, and a zip archive, from which
nothing is unpacked that could do harm. Each finding has a code; `--json` and findings.json name it.

**Errors** are about what cannot be used, **warnings** about what is used and likely does harm; **remarks** are said so
that nothing is done quietly. `train` leaves out what has an error and says so; an error about a folder stops it.

## Figures

- *Blur*: the width of the sharpest edges at the training's resolution (Zhuo and Sim, 2011), so a soft background does
  no harm. Reported from {soft:.1f} pixels of standard deviation on.
- *Exposure*: of what is not plain background. Reported from {white:.0%} pure white on, or when 98 % is darker than
  {dark:.0f} of 255.
- *Near duplicates*: miniatures of {side} x {side} pixels, laid over each other with slight shifts and scales.
- *Text, lines and subjects* are found without a model and can be wrong; each is reported from a sureness of {sure} on,
  text from {text}.
- *Variety*, for background, composition and light: how different two pictures of a class are on average (Rao's
  quadratic entropy), 0 to 1. 0 is all alike, 0.5 as varied as two wholly different kinds in equal parts, 0.9 as ten.
  Below {low:.2f} it is reported, with the pictures that have the most others near them.
"""
_SECTIONS = {"error": "Errors", "warning": "Warnings", "info": "Remarks"}


def reference_markdown(kinds: Mapping[str, Kind] = KINDS) -> str:
    """Return docs/check.md."""
    figures = {
        "soft": judge.SOFT,
        "white": judge.WHITE,
        "dark": judge.DARK,
        "sure": judge.SURE,
        "text": judge.TEXT_SURE,
    }
    parts = [_HEAD.format(**figures, side=measures.HASH_SIDE, low=variety.LOW)]
    for severity, title in _SECTIONS.items():
        rows = [f"## {title}\n", "| code | what it means | why it matters | what to do |", "|---|---|---|---|"]
        for code, kind in kinds.items():
            if kind.severity == severity:
                cells = (f"`{code}`", kind.means, kind.why, kind.fix)
                rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference_markdown())
