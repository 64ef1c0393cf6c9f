"""What a check found, collected, as findings.json and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorasmith import __version__
from lorasmith.dataset.check_cache import CheckCache
from lorasmith.dataset.check_page import PageInput, write_page
from lorasmith.dataset.contents import Contents
from lorasmith.dataset.finding import KINDS, Finding
from lorasmith.dataset.judge import Usable
from lorasmith.dataset.kinds import Severity
from lorasmith.dataset.variety import Variety
from lorasmith.events import Event
from lorasmith.files import json_text, replacing
from lorasmith.recipe.schema import Recipe

RESOLUTION = 512  # pixels, where the recipe names none: that of Stable Diffusion 1.5
FINDINGS, PAGE = "findings.json", "check.html"
ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Found(Event):
    """Something wrong or doubtful; the fields are a Finding's."""

    code: str
    severity: str
    message: str
    file: Path | None
    line: int | None
    fix: str
    related: tuple[Path, ...]


@dataclass(frozen=True)
class Options:
    """How to check.

    Args:
        recipe: what the data is for; its resolution, its seed and how much it holds out count.
        trigger: a word that every caption shall hold.
        cache: the cache's file; None for none that lasts.
        workers: how many pictures are looked at at once; None for as many as there are cores.
        processes: whether processes may do it; a script needs ``if __name__ == "__main__"`` for that.
    """

    recipe: Recipe
    trigger: str = ""
    cache: Path | None = None
    workers: int | None = None
    processes: bool = False

    @property
    def resolution(self) -> int:
        """Side of the training pictures, in pixels."""
        return self.recipe.data.resolution or RESOLUTION


class Findings:
    """Collects findings, with paths as the user knows them."""

    def __init__(self) -> None:
        self.all: list[Finding] = []
        self.unpacked: dict[Path, Path] = {}  # from a temporary folder to the archive it stands for

    def add(self, found: Finding) -> Found:
        message = found.message
        for folder, source in self.unpacked.items():
            message = message.replace(str(folder), str(source))
        related = tuple(self.public(path) for path in found.related)
        file = None if found.file is None else self.public(found.file)
        found = replace(found, message=message, file=file, related=related)
        self.all.append(found)
        return Found(found.code, found.severity, message, file, found.line, found.fix, related)

    def public(self, path: Path) -> Path:
        for folder, source in self.unpacked.items():
            if path.is_relative_to(folder):
                return source / path.relative_to(folder)
        return path


def make_report(
    sources: Sequence[Path],
    contents: Sequence[Contents],
    usable: Sequence[Usable],
    varieties: dict[str, Variety],
    resolution: int,
    findings: Findings,
) -> dict[str, Any]:
    """Return all of findings.json, JSON-ready."""
    counts = Counter(each.example.label for each in usable)
    found = sorted(findings.all, key=lambda f: (ORDER[f.severity], list(KINDS).index(f.code)))
    return {
        "version": 1,
        "lorasmith": __version__,
        "sources": [source.as_posix() for source in sources],
        "resolution": resolution,
        "pictures_found": sum(part.pictures_found for part in contents),
        "pictures_usable": len(usable),
        "classes": [
            {
                "label": part.folder.label,
                "path": findings.public(part.folder.path).as_posix(),
                "pictures_found": part.pictures_found,
                "pictures_usable": counts[part.folder.label],
                "captions_from": part.captions_from or None,
                "repeats": part.folder.repeats,
                "variety": _rounded(varied.figures) if (varied := varieties.get(part.folder.label)) else None,
                "plain_backgrounds": varied.plain if varied else None,
            }
            for part in contents
        ],
        "counts": dict(Counter(f.code for f in found)),
        "findings": [_plain(f) for f in found],
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures without the digits that differ from run to run."""
    return {name: round(figure, 4) for name, figure in figures.items()}


def _plain(found: Finding) -> dict[str, Any]:
    record = asdict(found)
    record["file"] = None if found.file is None else found.file.as_posix()
    record["related"] = [path.as_posix() for path in found.related]
    return record


def write_results(
    out: Path, report: dict[str, Any], findings: Findings, cache: CheckCache, shas: dict[Path, str]
) -> tuple[Path, Path]:
    """Write findings.json and the page into ``out`` and return their paths.

    Raises:
        OutputError: the disk refuses.
    """
    with replacing(out / FINDINGS) as temporary:
        temporary.write_text(json_text(report, indent=1), encoding="utf-8")
    page = PageInput(report, tuple(findings.all), lambda path: cache.thumbnail(shas[path]) if path in shas else None)
    with replacing(out / PAGE) as temporary, temporary.open("w", encoding="utf-8") as stream:
        write_page(page, stream)
    return out / FINDINGS, out / PAGE
