"""``check``: everything wrong or doubtful in pictures and captions, at once, before any model is loaded."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2

from lorasmith.dataset import archive
from lorasmith.dataset.caption_lint import Captioned, problems
from lorasmith.dataset.check_cache import CheckCache, default_cache
from lorasmith.dataset.check_report import (
    FINDINGS,
    ORDER,
    PAGE,
    RESOLUTION,
    Findings,
    Found,
    Options,
    make_report,
    write_results,
)
from lorasmith.dataset.contents import Caption, Contents, Listed, list_contents
from lorasmith.dataset.finding import Finding, finding
from lorasmith.dataset.folder import class_folders
from lorasmith.dataset.judge import (
    Usable,
    judge_classes,
    judge_file,
    judge_look,
    judge_name,
    judge_names_together,
    judge_together,
)
from lorasmith.dataset.lookers import answers
from lorasmith.dataset.read import Dataset, Example, example_of, same_files
from lorasmith.dataset.seen import Seen
from lorasmith.dataset.split import split
from lorasmith.dataset.variety import Variety, variety
from lorasmith.errors import DataError, OutputError
from lorasmith.events import Event, Finished, Note, Progress
from lorasmith.files import new_folder


def check(sources: Sequence[Path], out: Path, options: Options) -> Iterator[Event]:
    """Check folders and zip archives; write ``findings.json`` and ``check.html`` into ``out``.

    Every picture is decoded once; pictures are not kept. Yields a Found for each finding, and at the end a Finished
    whose figures are ``errors``, ``warnings``, ``infos``, ``pictures_found`` and ``pictures_usable``.

    Raises:
        DataError: nothing is named.
        OutputError: the results cannot be written, or ``out`` lies in the data.
    """
    if not sources:
        raise DataError("No folder of pictures is named.", fix="Name at least one, as in: lorasmith check data/axe")
    _refuse_inside(out, sources)
    new_folder(out)
    findings = Findings()
    with ExitStack() as stack:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the pictures are the parallel work
        stack.callback(cv2.setNumThreads, threads)
        cache = stack.enter_context(CheckCache(options.cache))
        folders: list[Path] = []
        for source in sources:
            if archive.is_archive(source):
                folders.append((yield from _unpacked(source, findings, stack)))
            else:
                folders.append(source)
        yield from _check(folders, sources, out, options, cache, findings)


def default_out(sources: Sequence[Path]) -> Path:
    """Return where results go if nobody says: a folder here, or beside the data where here is in it."""
    here = Path.cwd()
    for source in sources:
        folder = source.resolve()
        if folder.is_dir() and (here == folder or folder in here.parents):
            return folder.parent / "lorasmith-check"
    return here / "lorasmith-check"


def _refuse_inside(out: Path, sources: Sequence[Path]) -> None:
    for source in sources:
        folder = source.resolve()
        if folder.is_dir() and out.resolve().is_relative_to(folder):
            what = "The results cannot lie in the data that is checked."
            raise OutputError(what, where=str(out), fix="Choose another folder with --out.")


def _unpacked(source: Path, findings: Findings, stack: ExitStack) -> Generator[Event, None, Path]:
    """Unpack an archive into a temporary folder and return that."""
    top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lorasmith-"))).resolve()
    folder = top / source.stem
    folder.mkdir()
    findings.unpacked[folder] = source
    for item in archive.unpack(source, folder):
        if isinstance(item, Finding):
            yield findings.add(item)
        else:
            yield Progress(f"unpack {source.name}", *item, "files")
    return folder


def _check(
    folders: Sequence[Path],
    sources: Sequence[Path],
    out: Path,
    options: Options,
    cache: CheckCache,
    findings: Findings,
) -> Iterator[Event]:
    classes, about = class_folders(folders)
    bad = {f.file for f in findings.all if f.code == "bad-archive"}
    for found in about:
        if not (found.file is not None and findings.public(found.file) in bad):  # said already
            yield findings.add(found)
    contents = [list_contents(folder) for folder in classes]
    for part in contents:
        yield Note(_understood(part, findings))
        for found in part.findings:
            yield findings.add(found)
    usable: list[Usable] = []
    yield from _look_at_all(contents, options, cache, findings, usable)
    counts = Counter(each.listed.folder.path for each in usable)
    for part in contents:
        if not any(f.fatal for f in part.findings):
            for found in (*part.refused, *part.verdict(counts[part.folder.path])):
                yield findings.add(found)
    yield Progress("compare", 0, 1, "sets")
    varieties = _varieties(usable)
    for found in _compare(contents, usable, varieties, options):
        yield findings.add(found)
    yield Progress("compare", 1, 1, "sets")
    report = make_report(sources, contents, usable, varieties, options.resolution, findings)
    shas = {findings.public(each.listed.path): each.example.sha256 for each in usable}
    files = write_results(out, report, findings, cache, shas)
    levels = Counter(f.severity for f in findings.all)
    figures = {f"{name}s": float(levels[name]) for name in ORDER}
    figures |= {"pictures_found": float(report["pictures_found"]), "pictures_usable": float(len(usable))}
    yield Finished("check", files, figures)


def _understood(contents: Contents, findings: Findings) -> str:
    """Return what was understood of a folder, in words."""
    folder = contents.folder
    captions = f"captions from {contents.captions_from}" if contents.captions_from else f'caption "{folder.words}"'
    repeats = f", {folder.repeats} repeats in kohya's scripts" if folder.repeats else ""
    path = findings.public(folder.path)
    return f"{folder.label}: {contents.pictures_found} pictures, {captions}{repeats} ({path})"


def _look_at_all(
    contents: Sequence[Contents], options: Options, cache: CheckCache, findings: Findings, usable: list[Usable]
) -> Iterator[Event]:
    """Look at every picture, a few at a time; what is usable is added to ``usable``, in order."""
    resolution = options.resolution
    listed = [each for part in contents for each in part.listed]
    yield Progress("look", 0, len(listed))
    for found in judge_names_together(listed):
        yield findings.add(found)
    for done, (each, seen) in enumerate(_looks(listed, options, cache), start=1):
        for found in judge_name(each):
            yield findings.add(found)
        if isinstance(seen, Finding):
            yield findings.add(seen)
        else:
            for found in (*judge_file(each, seen), *judge_look(each, seen, resolution)):
                yield findings.add(found)
            if isinstance(each.caption, Finding):
                yield findings.add(each.caption)
            else:
                example, said = example_of(each, each.caption, seen.info)
                for found in said:
                    yield findings.add(found)
                usable.append(Usable(each, example, seen.measures))
        yield Progress("look", done, len(listed))


def _looks(listed: Sequence[Listed], options: Options, cache: CheckCache) -> Iterator[tuple[Listed, Seen | Finding]]:
    """Yield each picture with what was seen of it or why it cannot be used, in order; keep in the cache what is new."""
    try:
        paths = [each.path for each in listed]
        found = answers(paths, options.workers, cache.get, processes=options.processes)
        for each, (answer, is_new) in zip(listed, found):
            if is_new and isinstance(answer, Seen):
                cache.put(each.path, answer)
            yield each, answer
    finally:
        cache.commit()


def _varieties(usable: Sequence[Usable]) -> dict[str, Variety]:
    groups: dict[str, list[Usable]] = defaultdict(list)
    for each in usable:
        groups[each.example.label].append(each)
    found = {label: variety([each.measures for each in group]) for label, group in groups.items()}
    return {label: varied for label, varied in found.items() if varied is not None}


def _compare(
    contents: Sequence[Contents], usable: Sequence[Usable], varieties: dict[str, Variety], options: Options
) -> Iterator[Finding]:
    """Yield what only shows when all pictures and captions are looked at together."""
    examples: tuple[Example, ...] = tuple(each.example for each in usable)
    yield from same_files(examples)
    data = options.recipe.data
    _, held = split(Dataset(examples, (), len(examples)), data.validation, options.recipe.train.seed)
    yield from judge_together(usable, frozenset(e.sha256 for e in held), bool(held))
    yield from judge_classes(usable, varieties)
    seen: set[Path] = set()
    for part in contents:
        if part.folder.repeats is not None and part.folder.path not in seen:
            what = f"{part.folder.label} asks for {part.folder.repeats} repeats of each picture, as kohya's scripts do."
            yield finding("repeats", what, part.folder.path)
    yield from _lint(usable, options.trigger)


def _lint(usable: Sequence[Usable], trigger: str) -> Iterator[Finding]:
    """Yield what there is to say about the captions that somebody wrote."""
    captioned = []
    for each in usable:
        caption = each.listed.caption
        if isinstance(caption, Caption) and caption.file is not None and caption.text:
            label, path = each.example.label, each.listed.path
            captioned.append(Captioned(path, caption.line, caption.text, label, caption.file))
    for problem in problems(captioned, trigger=trigger):
        first, *others = (captioned[i] for i in problem.members)
        related = (first.file, *(other.file for other in others))
        yield finding(problem.code, problem.message, first.source, line=first.line, related=related)


__all__ = ["FINDINGS", "PAGE", "RESOLUTION", "Found", "Options", "check", "default_cache", "default_out"]
