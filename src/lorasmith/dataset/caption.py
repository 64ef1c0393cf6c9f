"""The verb ``caption``: propose captions for pictures that lack one, edit those that are there, and save them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

from lorasmith.dataset.caption_edit import Edits
from lorasmith.dataset.caption_file import CaptionFile, NewCaption, caption_of, sources
from lorasmith.dataset.caption_template import Template, known_words
from lorasmith.dataset.contact import thumbnail
from lorasmith.dataset.contents import Contents, Listed, list_contents
from lorasmith.dataset.finding import Finding, data_error
from lorasmith.dataset.folder import class_folders
from lorasmith.dataset.picture import Picture, PictureError, open_rgb
from lorasmith.events import Event, Finished, Note, Progress, Warned
from lorasmith.files import require_writable

_SAVE_SECONDS = 5.0
_SIDE = 1024  # pixels of the longer side that is looked at; no describer uses more, and a batch has to fit in memory
_STAGE = "caption"


class Describer(Protocol):
    """What makes captions of pictures; see ``TemplateDescriber`` and ``model.captioner.Captioner``."""

    @property
    def source(self) -> str:
        """Its name, which is noted beside the captions that it makes."""

    @property
    def batch(self) -> int:
        """How many pictures it describes at once."""

    @property
    def looks(self) -> bool:
        """Whether it has to be given the pictures themselves."""

    @property
    def cheap(self) -> bool:
        """Whether its captions are made anew each time rather than kept."""

    def describe(self, listed: Sequence[Listed], pictures: Sequence[Picture | None]) -> list[str]:
        """Return a caption for each picture."""


@dataclass(frozen=True)
class TemplateDescriber:
    """Fills in a template."""

    template: Template
    source: str = "template"
    batch: int = 1
    cheap: bool = True

    @property
    def looks(self) -> bool:
        return self.template.looks

    def describe(self, listed: Sequence[Listed], pictures: Sequence[Picture | None]) -> list[str]:
        return [self.template.fill(known_words(each, picture)) for each, picture in zip(listed, pictures)]


@dataclass(frozen=True)
class Proposal(Event):
    """A caption that would change.

    Args:
        path: the picture.
        caption: what it would become.
        was: what it is; empty if there is none.
        source: what made it, empty for a person's caption that was edited.
    """

    path: Path
    caption: str
    was: str
    source: str


@dataclass
class Tally:
    """How many pictures there are and what becomes of them; every picture is in exactly one of the others."""

    pictures: int = 0
    described: int = 0
    edited: int = 0
    unchanged: int = 0
    refused: int = 0

    def figures(self) -> dict[str, float]:
        return {name: float(value) for name, value in vars(self).items() if value or name in ("pictures", "described")}


def open_folders(folders: Sequence[Path]) -> list[Contents]:
    """Return what lies in the folders of pictures.

    Raises:
        DataError: one cannot be used; all problems are listed.
    """
    found, findings = class_folders(folders)
    contents = [list_contents(folder) for folder in found]
    fatal = [f for f in (*findings, *(f for c in contents for f in c.findings)) if f.fatal]
    if fatal:
        raise data_error(fatal)
    return contents


def propose(
    contents: Sequence[Contents], describer: Describer | None, edits: Edits, *, overwrite: bool = False
) -> Generator[Event, None, Tally]:
    """Yield a ``Proposal`` for every caption that would change; nothing is written. Returns the tally.

    A picture is described that has no caption, or one that a program made and no person changed since; with
    ``overwrite`` also those that people wrote. What the same model made before is kept, so a describing that was
    stopped goes on where it was. The edits are made to every caption, old and new.

    Args:
        contents: see ``open_folders``.
        describer: makes captions; None only edits.
        edits: what is done to captions.
        overwrite: replace captions that people wrote.
    """
    tally = Tally()
    todo: list[tuple[Listed, str]] = []
    bare = persons = 0
    for each in contents:
        made = sources(each.folder, each)
        for listed in each.listed:
            tally.pictures += 1
            was, source = caption_of(listed.caption), made.get(listed.path, "")
            unreadable = isinstance(listed.caption, Finding) and listed.caption.code != "no-entry"
            bare += not (was or unreadable)
            persons += bool(was and not source)
            if unreadable and not overwrite:
                tally.refused += 1
                yield Warned(f"{listed.name} is left alone: {listed.caption}")
            elif describer and _wants(describer, was, source, overwrite):
                todo.append((listed, was))
            elif (caption := edits(was)) != was:
                tally.edited += 1
                yield Proposal(listed.path, caption, was, source)
            else:
                tally.unchanged += 1
    if describer and persons and not overwrite:
        yield Note(f"{persons} of {tally.pictures} captions are by people and stay; --overwrite replaces them.")
    if describer and todo:
        yield from _describe(todo, describer, edits, tally)
    elif bare and not describer:
        yield Warned(f"{bare} of {tally.pictures} pictures have no caption to edit. To write them: --with template.")
    return tally


def _wants(describer: Describer, was: str, source: str, overwrite: bool) -> bool:
    if not was:
        return True
    if source == describer.source:
        return describer.cheap
    return bool(source) or overwrite


def _describe(todo: Sequence[tuple[Listed, str]], describer: Describer, edits: Edits, tally: Tally) -> Iterator[Event]:
    yield Progress(_STAGE, 0, len(todo))
    for start in range(0, len(todo), describer.batch):
        part: list[tuple[Listed, str, Picture | None]] = []
        for listed, was in todo[start : start + describer.batch]:
            try:
                part.append((listed, was, thumbnail(open_rgb(listed.path), _SIDE) if describer.looks else None))
            except PictureError as error:
                tally.refused += 1
                yield Warned(f"{listed.name} is left alone: {error.what}")
        texts = describer.describe([p[0] for p in part], [p[2] for p in part]) if part else []
        for (listed, was, _), text in zip(part, texts):
            caption = edits(text)
            if not caption:
                tally.refused += 1
                yield Warned(f"No words were found for {listed.name}.")
            elif caption == was:
                tally.unchanged += 1
            else:
                tally.described += 1
                yield Proposal(listed.path, caption, was, describer.source)
        yield Progress(_STAGE, min(start + describer.batch, len(todo)), len(todo))


def caption(
    folders: Sequence[Path],
    describer: Describer | None,
    edits: Edits,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Caption the pictures in folders, as ``propose`` says, into a metadata.jsonl in each.

    What has been made is saved every few seconds and also when the work is stopped.

    Args:
        folders: folders of pictures, one class each.
        describer: makes captions; None only edits.
        edits: what is done to captions.
        overwrite: replace captions that people wrote.
        dry_run: write nothing.

    Raises:
        DataError: a folder cannot be used.
        OutputError: a file cannot be written.
    """
    contents = open_folders(folders)
    if dry_run:
        tally = yield from propose(contents, describer, edits, overwrite=overwrite)
        yield Finished(_STAGE, (), tally.figures())
        return
    for each in contents:
        require_writable(each.folder.path)
    saver = Saver(contents)
    events = propose(contents, describer, edits, overwrite=overwrite)
    tally = Tally()
    try:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                tally = end.value
                break
            if isinstance(event, Proposal):
                saver.add(event)
            yield event
            saver.save_now_and_then()
    finally:
        saver.save()
    for path in saver.kept:
        yield Warned(f"The caption of {path.name} was changed meanwhile by someone else; theirs stays.")
    if saver.backups:
        yield Note(f"What was there before: {', '.join(str(path) for path in saver.backups)}")
    yield Finished(_STAGE, tuple(saver.written), tally.figures())


class Saver:
    """Keeps proposals that were accepted, and writes them into the folders they belong to."""

    def __init__(self, contents: Sequence[Contents]) -> None:
        self._files = {each.folder.path: CaptionFile(each.folder) for each in contents}
        self._home = {listed.path: each.folder.path for each in contents for listed in each.listed}
        self._waiting: list[Proposal] = []
        self._last = time.monotonic()
        self.written: list[Path] = []
        self.backups: list[Path] = []
        self.kept: list[Path] = []

    def add(self, proposal: Proposal) -> None:
        """Take a caption that shall be written."""
        self._waiting.append(proposal)

    def save_now_and_then(self) -> None:
        """Save, unless that was just done."""
        if self._waiting and time.monotonic() - self._last >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is waiting.

        Raises:
            OutputError: the disk refuses; what could not be written still waits.
        """
        order = sorted(self._waiting, key=lambda p: str(self._home[p.path]))
        for home, group in groupby(order, key=lambda p: self._home[p.path]):
            part = list(group)
            new = {p.path: NewCaption(p.caption, p.source, p.was) for p in part}
            written = self._files[home].save(new)
            done = {p.path for p in part}
            self._waiting = [p for p in self._waiting if p.path not in done]
            self.kept += written.kept
            for found, listed in ((written.path, self.written), (written.backup, self.backups)):
                if found is not None and found not in listed:
                    listed.append(found)
        self._last = time.monotonic()
