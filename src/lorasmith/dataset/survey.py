"""The first look of a curation: which pictures there are, which are left out and why, and the new names."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from lorasmith.dataset.contents import Contents, Listed, list_contents
from lorasmith.dataset.duplicates import groups
from lorasmith.dataset.finding import Finding, data_error, shown
from lorasmith.dataset.folder import class_folders
from lorasmith.dataset.look import look
from lorasmith.dataset.measures import perceptual_hash, softness
from lorasmith.dataset.picture import Picture, PictureError, probe
from lorasmith.dataset.plan import Plan, choice_for
from lorasmith.errors import DataError
from lorasmith.events import Event, Note, Progress, Warned

_AHEAD = 2  # pictures for each worker that may be in memory, so memory does not grow with the data set

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Looked:
    """What the first look at a picture keeps in memory: a hash of 3 KB and how good it is."""

    sha256: str
    size: tuple[int, int]
    hash: Picture
    softness: float


@dataclass
class Source:
    """The pictures of all classes with what is known of each."""

    contents: list[Contents]
    listed: list[Listed] = field(default_factory=list)
    looked: dict[Path, Looked] = field(default_factory=dict)
    excluded: dict[Path, str] = field(default_factory=dict)
    names: dict[Path, str] = field(default_factory=dict)

    @property
    def found(self) -> int:
        return sum(part.pictures_found for part in self.contents)


def contents_of(folders: Sequence[Path]) -> tuple[list[Contents], list[Finding]]:
    if not folders:
        raise DataError("No folder of pictures is named.", fix="Name at least one, as in: lorasmith curate data/axe")
    classes, findings = class_folders(folders)
    contents = [list_contents(folder) for folder in classes]
    findings += [each for part in contents for each in part.findings]
    if fatal := [each for each in findings if each.fatal]:
        raise data_error(fatal)
    return contents, findings


def survey(folders: Sequence[Path], plan: Plan) -> Generator[Event, None, Source]:
    """Look at every picture once; return the source with its exclusions."""
    contents, findings = contents_of(folders)
    source = Source(contents, [each for part in contents for each in part.listed])
    _require_known(source, plan)
    _require_readable(plan)
    for part in contents:
        yield Note(
            f"{part.folder.label}: {part.pictures_found} pictures, captions from {part.captions_from or 'its name'}"
        )
    for found in findings:
        if found.excludes and found.about == "entry":
            yield Warned(str(found))
    todo = [each for each in source.listed if not isinstance(each.caption, Finding)]
    source.excluded |= {e.path: e.caption.message for e in source.listed if isinstance(e.caption, Finding)}
    yield Progress("look", 0, len(todo))
    for done, (each, looked) in enumerate(parallel(_look, todo), start=1):
        if isinstance(looked, Looked):
            source.looked[each.path] = looked
        else:
            source.excluded[each.path] = looked
        yield Progress("look", done, len(todo))
    for each in source.listed:
        if (skip := choice_for(plan, names_of(each)).skip) is not None and each.path not in source.excluded:
            source.excluded[each.path] = f"the plan skips it: {skip or 'without a reason'}"
    if plan.duplicates.drop:
        source.excluded |= _duplicates(source, plan)
    source.names = _new_names(source, plan)
    return source


def _require_known(source: Source, plan: Plan) -> None:
    """Refuse exceptions for pictures that are not there, all at once."""
    known = {name for each in source.listed for name in names_of(each)}
    unknown = [name for name in plan.pictures if name not in known]
    if unknown:
        names = ", ".join(shown(name) for name in unknown)
        what = f"The plan has exceptions for pictures that are not there: {names}."
        raise DataError(what, fix="Write a name as it is in the folder, as 12.png or axe/12.png.")


def _require_readable(plan: Plan) -> None:
    """Refuse pictures that the plan itself needs and that cannot be read, all at once."""
    masks = [each.mask for each in plan.pictures.values() if each.mask is not None]
    problems = []
    for path in (*plan.background.pictures, *masks):
        try:
            probe(path)
        except PictureError as error:
            problems.append(f"{error.where}: {error.what}")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        what = f"The plan names pictures that cannot be used:{lines}"
        raise DataError(what, fix="Check their paths, which start at the plan's folder.")


def names_of(listed: Listed) -> tuple[str, ...]:
    inner = listed.path.relative_to(listed.folder.path).as_posix()
    return f"{listed.folder.label}/{inner}", inner


def _look(listed: Listed) -> Looked | str:
    try:
        seen = look(listed.path)
    except PictureError as error:
        return error.what
    grey = cv2.cvtColor(seen.picture, cv2.COLOR_RGB2GRAY)
    size = (seen.info.width, seen.info.height)
    return Looked(seen.info.sha256, size, perceptual_hash(seen.picture), softness(grey))


def _duplicates(source: Source, plan: Plan) -> dict[Path, str]:
    """Return the pictures of each class that a better one of the same class makes needless, each with why."""
    dropped: dict[Path, str] = {}
    for part in source.contents:
        known = [each for each in part.listed if each.path in source.looked and each.path not in source.excluded]
        for group in groups([source.looked[each.path].hash for each in known]):
            members = [known[index] for index in group]
            best = min(members, key=lambda e: _rank(source.looked[e.path], e))
            for each in members:
                if each is not best and not choice_for(plan, names_of(each)).keep:
                    dropped[each.path] = _why(source, each, best)
    return dropped


def _rank(looked: Looked, listed: Listed) -> tuple[float, float, str]:
    sharp = looked.softness if np.isfinite(looked.softness) else 99.0
    return -looked.size[0] * looked.size[1], round(sharp, 1), names_of(listed)[1]


def _why(source: Source, worse: Listed, best: Listed) -> str:
    a, b = source.looked[worse.path], source.looked[best.path]
    if a.sha256 == b.sha256:
        return f"the same file as {best.name}, which is kept"
    if a.size[0] * a.size[1] < b.size[0] * b.size[1]:
        reason = f"is larger: {b.size[0]} x {b.size[1]} pixels, not {a.size[0]} x {a.size[1]}"
    elif _rank(a, worse)[1] > _rank(b, best)[1]:
        reason = f"is sharper: edges {b.softness:.1f} pixels soft, not {a.softness:.1f}"
    else:
        reason = "comes first by its name"
    return f"nearly the same picture as {best.name}, which is kept because it {reason}"


def _new_names(source: Source, plan: Plan) -> dict[Path, str]:
    """Return each used picture's name in the new folder: its own, made safe for every system, and used only once."""
    suffix = ".png" if plan.output.format == "png" else ".jpg"
    labels: dict[Path, str] = {}
    for part in source.contents:
        labels[part.folder.path] = _unused(_safe(part.folder.label), "", {v.lower() for v in labels.values()})
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for each in source.listed:
        if each.path in source.excluded:
            continue
        inner = each.path.relative_to(each.folder.path).with_suffix("")
        stem = "/".join(_safe(part) for part in inner.parts)
        if len(source.contents) > 1:
            stem = f"{labels[each.folder.path]}/{stem}"
        copy = "-mirror" if choice_for(plan, names_of(each)).mirror else ""
        names[each.path] = _unused(stem, copy, taken) + suffix
    return names


def _safe(name: str) -> str:
    safe = re.sub(r"[^\w.\- ()]+", "_", name).strip(" .") or "_"
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", safe, re.IGNORECASE):
        safe = f"_{safe}"
    return safe[:100]


def _unused(stem: str, copy: str, taken: set[str]) -> str:
    """Return ``stem``, or with a number where that or its copy is taken, and take it; capitals do not count."""
    number, name = 1, stem
    while {name.lower(), f"{name}{copy}".lower()} & taken:
        number += 1
        name = f"{stem}-{number}"
    taken |= {name.lower(), f"{name}{copy}".lower()}
    return name


def parallel(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[tuple[_In, _Out]]:
    """Yield each item with what ``function`` makes of it, in order, few at a time in memory."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    todo = iter(items)
    waiting: deque[tuple[_In, Future[_Out]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="curate")
    try:
        while True:
            for item in islice(todo, max(0, _AHEAD * workers - len(waiting))):
                waiting.append((item, pool.submit(function, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
