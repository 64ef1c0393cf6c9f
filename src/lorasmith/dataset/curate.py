"""Make a clean data set of pictures: the source is only read, and the ledger says what became of each picture.

Everything is written into a new folder beside the target, which takes the target's name at the very end, so a target
is complete or absent. A run that is stopped leaves nothing behind; running again starts clean.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lorasmith.dataset import ledger, metadata
from lorasmith.dataset.background import require_finder
from lorasmith.dataset.contact import Change, Sheets, full_size, png, small
from lorasmith.dataset.contents import Caption, Listed
from lorasmith.dataset.finding import shown
from lorasmith.dataset.look import Room, look
from lorasmith.dataset.picture import Picture, PictureError
from lorasmith.dataset.plan import Choice, Plan, choice_for
from lorasmith.dataset.steps import Excluded, Work, mirrored, run_steps
from lorasmith.dataset.survey import Source, contents_of, names_of, parallel, survey
from lorasmith.errors import DataError, OutputError
from lorasmith.events import Event, Finished, Note, Progress, Warned
from lorasmith.files import json_text, new_folder, output_error, require_writable, sync_folder, write_bytes, write_text

_WARNED = 20  # exclusions that are said one by one; the ledger has all
_NAMED = 8  # pictures in one line
_room = Room(12_000_000)  # pixels that may be worked on at once; a larger picture is worked on alone
_EMPTY = np.zeros((1, 1, 3), dtype=np.uint8)


@dataclass(frozen=True)
class _Made:
    """A picture that is done: its files' bytes, and thumbnails of what changed."""

    entry: ledger.Entry
    files: tuple[tuple[str, bytes], ...] = ()
    masks: tuple[tuple[str, bytes], ...] = ()
    changes: tuple[Change, ...] = ()


def curate(folders: Sequence[Path], out: Path, plan: Plan, *, dry_run: bool = False) -> Iterator[Event]:
    """Write a clean ImageFolder of the pictures in ``folders``, with metadata.jsonl and ledger.jsonl.

    Before/after sheets go to ``OUT-sheets`` and masks to ``OUT-masks``, beside it: a picture inside would count as
    part of the data set. Several classes become a folder each.

    Args:
        folders: as for ``read_dataset``.
        out: a folder that is not there yet, or is empty.
        plan: what shall be done.
        dry_run: do everything but write, and say for each picture what would be done.

    Raises:
        DataError: a folder cannot be used, or the plan names pictures that are not there.
        OutputError: the target is taken, or cannot be written.
        LorasmithError: the plan asks for rembg and it is not there.
    """
    require_finder(plan.background.finder)
    targets = (out, *([_beside(out, "masks")] if plan.output.masks else []), _beside(out, "sheets"))
    if not dry_run:
        _require_free(targets, folders)
        require_writable(_absolute(out).parent)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # pictures are done side by side instead
    try:
        source = yield from survey(folders, plan)
        if dry_run:
            entries = yield from _process(source, plan, None)
            yield from _summary(entries, source, (), "curate (dry run)")
        else:
            yield from _write(source, plan, targets)
    finally:
        cv2.setNumThreads(threads)


def show_picture(folders: Sequence[Path], name: str, out: Path, plan: Plan) -> Iterator[Event]:
    """Write every step of one picture, before and after at full size, into one PNG file.

    Args:
        folders: as for ``curate``.
        name: the picture's, as ``12.png`` or ``axe/12.png``.
        out: a PNG file that is not there yet.
        plan: what shall be done.

    Raises:
        DataError: there is no such picture, or it cannot be used.
        OutputError: ``out`` is taken, or cannot be written.
    """
    if out.exists():
        raise OutputError("That file is already there.", where=str(out), fix="Choose another name, or remove it.")
    require_finder(plan.background.finder)
    listed = [each for part in contents_of(folders)[0] for each in part.listed]
    chosen = [each for each in listed if name in names_of(each)]
    if len(chosen) != 1:
        what = f"{shown(name)} is {'more than one picture' if chosen else 'not one of the pictures'}."
        raise DataError(what, fix="Write it as the ledger does, as axe/12.png.")
    work = Work(chosen[0].name, "", plan, choice_for(plan, names_of(chosen[0])), _EMPTY, record=_whole)
    work.key = look(chosen[0].path).info.sha256
    try:
        run_steps(chosen[0].path, work)
    except Excluded as reason:
        yield Note(f"It would be left out: {reason}.")
    for each in work.operations:
        yield Note(f"{each.name}: {json_text(each.how)}")
    if work.choice.skip is not None:
        yield Note(f"It would be left out: the plan skips it: {work.choice.skip or 'without a reason'}.")
    if work.choice.mirror:
        work.show(Change("mirror", work.label, work.picture, mirrored(work.picture)))
    new_folder(_absolute(out).parent)
    write_bytes(out, png(full_size(work.changes, work.picture)))
    yield Finished("show", (out,), {"operations": float(len(work.changes))})


def _process(
    source: Source, plan: Plan, take: Callable[[_Made], None] | None
) -> Generator[Event, None, list[ledger.Entry]]:
    """Do every picture; hand each to ``take`` in order, or say what would be done; return the entries."""
    entries: list[ledger.Entry] = []
    warned = 0

    def make(listed: Listed) -> _Made:
        return _make(listed, source, plan, files=take is not None)

    yield Progress("curate", 0, len(source.listed))
    for done, (_, made) in enumerate(parallel(make, source.listed), start=1):
        if take is None:
            yield Note(_told(made.entry))
        else:
            take(made)
            if made.entry.excluded is not None:
                warned += 1
                if warned <= _WARNED:
                    yield Warned(_told(made.entry))
        entries.append(made.entry)
        yield Progress("curate", done, len(source.listed))
    for part in source.contents:
        for each in part.refused:
            name = shown(each.file or part.folder.label, limit=None)
            entries.append(ledger.Entry(name, "", None, (), each.message))
            yield Warned(str(each))
    return entries


def _told(entry: ledger.Entry) -> str:
    if entry.excluded is not None:
        return f"{entry.picture} is left out: {entry.excluded}"
    names = [each.name for each in entry.operations if each.applied] or ["unchanged"]
    unsure = [f"{each.name} ({each.how['why']})" for each in entry.operations if not each.applied]
    return f"{entry.picture}: {', '.join(names)}" + (f"; not done: {', '.join(unsure)}" if unsure else "")


def _make(listed: Listed, source: Source, plan: Plan, *, files: bool) -> _Made:
    looked = source.looked.get(listed.path)
    entry = ledger.Entry(listed.name, looked.sha256 if looked else "", looked.size if looked else None, (), None)
    if (reason := source.excluded.get(listed.path)) is not None or looked is None:
        return _Made(replace(entry, excluded=reason or "it could not be read"))
    choice = choice_for(plan, names_of(listed))
    work = Work(
        listed.name, looked.sha256, plan, choice, _EMPTY, record=small if files and plan.output.sheets else None
    )
    try:
        with _room(looked.size[0] * looked.size[1]):
            run_steps(listed.path, work)
            return _finished(work, entry, source.names[listed.path], choice, files=files)
    except (Excluded, PictureError) as error:
        reason = error.what if isinstance(error, PictureError) else str(error)
        return _Made(replace(entry, excluded=reason, operations=tuple(work.operations)))


def _finished(work: Work, entry: ledger.Entry, name: str, choice: Choice, *, files: bool) -> _Made:
    plan, path = work.plan, Path(name)
    names = [name, *([path.with_name(f"{path.stem}-mirror{path.suffix}").as_posix()] if choice.mirror else [])]
    if choice.mirror:
        work.operations.append(ledger.Operation("mirror", True, {"file": names[1]}))
        work.show(Change("mirror", work.label, work.picture, mirrored(work.picture)))
    entry = replace(entry, out=tuple(names), operations=tuple(work.operations))
    if not files:
        return _Made(entry)
    views: tuple[Callable[[Picture], Picture], ...] = (_same, mirrored)
    written = tuple((n, _encoded(view(work.picture), plan)) for n, view in zip(names, views))
    masks: tuple[tuple[str, bytes], ...] = ()
    if plan.output.masks:
        mask = work.subject.mask.astype(np.uint8) * np.uint8(255)
        if work.subject.confidence < plan.background.sure:
            mask = np.full_like(mask, 255)  # unsure: nothing is masked out
        masks = tuple((Path(n).with_suffix(".png").as_posix(), png(view(mask))) for n, view in zip(names, views))
    return _Made(entry, written, masks, tuple(work.changes))


def _whole(change: Change) -> Change:
    return change


def _same(picture: Picture) -> Picture:
    return picture


def _encoded(picture: Picture, plan: Plan) -> bytes:
    if plan.output.format == "png":
        return png(picture)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=plan.output.quality, subsampling=0, optimize=True)
    return stream.getvalue()


def _write(source: Source, plan: Plan, targets: Sequence[Path]) -> Iterator[Event]:
    """Write everything beside the targets, then give it its names; whatever goes wrong, nothing half-written stays."""
    out = _absolute(targets[0])
    home = out.parent / f".{out.name}-{secrets.token_hex(4)}.unfinished"
    made = {path: home / path.name for path in map(_absolute, targets)}
    new_folder(made[out])
    sheets = Sheets(home / _beside(out, "sheets").name)
    try:

        def take(done: _Made) -> None:
            for name, data in done.files:
                _put(made[out] / name, data)
            for name, data in done.masks:
                _put(home / _beside(out, "masks").name / name, data)
            for change in done.changes:
                sheets.add(change)

        entries = yield from _process(source, plan, take)
        sheets.finish()
        _write_words(made[out], source, entries, plan)
        total = ledger.balance(entries, source.found)
        head = {"plan": plan.sha256, "classes": [part.folder.label for part in source.contents]}
        write_text(made[out] / ledger.NAME, ledger.ledger_text(entries, total, head))
        _publish(made, out)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    files = (out / ledger.NAME, *(path for path in map(_absolute, targets) if path.is_dir()))
    yield from _summary(entries, source, files, "curate")


def _put(path: Path, data: bytes) -> None:
    new_folder(path.parent)
    write_bytes(path, data, durable=False)


def _write_words(home: Path, source: Source, entries: Sequence[ledger.Entry], plan: Plan) -> None:
    """Write metadata.jsonl into each class's folder; a picture's copies have its caption."""
    captions = {each.name: each.caption.text or each.folder.words for each in source.listed
                if isinstance(each.caption, Caption)}  # fmt: skip
    lines: dict[Path, list[str]] = {}
    for entry in entries:
        for name in entry.out:
            folder, inner = (home, name)
            if len(source.contents) > 1:
                label, _, inner = name.partition("/")
                folder = home / label
            record = {"file_name": inner, "text": captions[entry.picture]}
            lines.setdefault(folder, []).append(json_text(record))
    for folder, text in lines.items():
        write_text(folder / metadata.NAME, "\n".join(text) + "\n")


def _publish(made: dict[Path, Path], out: Path) -> None:
    """Move what was made to its names, the data set last, so that it is complete when it is there."""
    for path in sorted(made, key=lambda p: p == out):
        if made[path].is_dir():
            try:
                if path.is_dir():
                    path.rmdir()  # it was empty
                made[path].replace(path)
            except OSError as error:
                raise output_error(path, error) from error
    sync_folder(out.parent)


def _summary(entries: Sequence[ledger.Entry], source: Source, files: tuple[Path, ...], stage: str) -> Iterator[Event]:
    total = ledger.balance(entries, source.found)
    if broken := [each.picture for each in entries if any("pieces" in o.how for o in each.operations)]:
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        names = ", ".join(broken[:_NAMED])
        yield Note(f"The subject was found in several pieces; see on the sheets whether it is whole: {names}{more}.")
    figures = {"in": float(total.pictures_in), "out": float(total.pictures_out), "excluded": float(total.excluded)}
    if total.copies:
        figures["mirrored"] = float(total.copies)
    yield Finished(stage, files, figures | {name: float(count) for name, count in total.operations.items()})


def _require_free(targets: Sequence[Path], folders: Sequence[Path]) -> None:
    for path in map(_absolute, targets):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            what = f"{path.name} is already there and not empty."
            raise OutputError(what, where=str(path), fix="Choose another folder with --out, or remove it.")
    out = targets[0].resolve()
    for folder in folders:
        inside = folder.resolve()
        if out == inside or inside in out.parents:
            what = "The new folder would lie inside the pictures' own, which is never changed."
            raise OutputError(what, where=str(targets[0]), fix="Choose a folder elsewhere with --out.")


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.name}-{what}")


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 -- resolve() would follow a link at the target
