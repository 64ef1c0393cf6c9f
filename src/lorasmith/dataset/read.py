"""From folders of pictures and captions to a Dataset in which every picture is used or listed with a reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorasmith.dataset.contents import Caption, Listed, list_contents
from lorasmith.dataset.finding import Finding, data_error, finding, shown
from lorasmith.dataset.folder import Folder, class_folders
from lorasmith.dataset.picture import PictureError, PictureInfo, probe
from lorasmith.errors import DataError


@dataclass(frozen=True)
class Example:
    """A picture and its caption.

    Args:
        path: the picture, resolved.
        caption: on one line, never empty.
        label: its class, which is the name of its folder.
        width: pixels, upright.
        height: pixels, upright.
        sha256: of the file's bytes, in hexadecimal.
        preserved: whether it shows what the base draws already, and shall go on to draw so.
    """

    path: Path
    caption: str
    label: str
    width: int
    height: int
    sha256: str
    preserved: bool = False


@dataclass(frozen=True)
class Dataset:
    """What was read: ``pictures_found == len(examples) + excluded_pictures``, always.

    Args:
        examples: the pictures that are used, in the order of the folders and of their names.
        findings: what is wrong or doubtful.
        pictures_found: files in the folders that are pictures by their name or that a metadata file names.
    """

    examples: tuple[Example, ...]
    findings: tuple[Finding, ...]
    pictures_found: int

    @property
    def classes(self) -> dict[str, int]:
        """How many examples each class has, in the order of the folders."""
        return dict(Counter(example.label for example in self.examples))

    @property
    def excluded(self) -> tuple[Finding, ...]:
        """The findings that leave out a picture or a line of a metadata file."""
        return tuple(f for f in self.findings if f.excludes)

    @property
    def excluded_pictures(self) -> int:
        """How many of the pictures found are not used."""
        return sum(f.about == "picture" for f in self.excluded)

    @property
    def sha256(self) -> str:
        """A hash over labels, contents and captions, in hexadecimal; paths and order do not matter."""
        rows = sorted([e.label, e.sha256, e.caption] for e in self.examples)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_dataset(folders: Sequence[Path], *, strict: bool = False, preserve: Sequence[Path] = ()) -> Dataset:
    """Read folders of pictures, one class each; every picture is decoded once, one at a time.

    Captions come from metadata.jsonl, .csv or .parquet (Hugging Face ImageFolder), else from a .txt or .caption file
    beside each picture, else from the folder's name. A folder that holds only folders stands for those.

    Args:
        folders: the folders.
        strict: refuse to leave anything out.
        preserve: more folders, whose examples come last and are ``preserved``; each makes a class of its own.

    Raises:
        DataError: a folder cannot be used, or with ``strict`` anything is left out; all problems are listed.
    """
    if not folders:
        raise DataError("No folder of pictures is named.", fix="Name at least one, as in: lorasmith train data/axe")
    found_folders, findings = class_folders(folders)
    examples: list[Example] = []
    excluded = 0
    for folder in found_folders:
        part = _read_folder(folder)
        examples += part.examples
        excluded += part.pictures_found - len(part.examples)
        findings += part.findings
    errors = sorted((f for f in findings if f.severity == "error"), key=lambda f: not f.fatal)
    if errors and (strict or errors[0].fatal):
        raise data_error(errors)
    own = Dataset(tuple(examples), (*findings, *same_files(examples)), len(examples) + excluded)
    return _with_preserved(own, read_dataset(preserve, strict=strict)) if preserve else own


def _with_preserved(own: Dataset, preserved: Dataset) -> Dataset:
    marked = [replace(e, label=f"{e.label} (preserved)", preserved=True) for e in preserved.examples]
    return Dataset(
        (*own.examples, *marked),
        (*own.findings, *preserved.findings),
        own.pictures_found + preserved.pictures_found,
    )


def _read_folder(folder: Folder) -> Dataset:
    contents = list_contents(folder)
    findings = list(contents.findings)
    if any(f.fatal for f in findings):
        return Dataset((), tuple(findings), 0)
    examples: list[Example] = []
    for listed in contents.listed:
        example, said = _read_picture(listed)
        examples += [example] if example else []
        findings += said
    findings += [*contents.refused, *contents.verdict(len(examples))]
    return Dataset(tuple(examples), tuple(findings), contents.pictures_found)


def _read_picture(listed: Listed) -> tuple[Example | None, list[Finding]]:
    if isinstance(listed.caption, Finding):
        return None, [listed.caption]
    try:
        return example_of(listed, listed.caption, probe(listed.path))
    except PictureError as error:
        return None, [finding(error.code, error.what, listed.path)]


def example_of(listed: Listed, caption: Caption, info: PictureInfo) -> tuple[Example, list[Finding]]:
    """Return the example that a picture makes which could be decoded, and what there is to say about it."""
    said = []
    words = listed.folder.words
    if not caption.text:
        what = f'{listed.name} has no caption; "{shown(words)}" is used.'
        said.append(finding("empty-caption", what, listed.path))
    if info.pages > 1:
        what = f"{listed.name} has {info.pages} pages; the first is used."
        said.append(finding("several-pages", what, listed.path))
    text = caption.text or words
    return Example(listed.path, text, listed.folder.label, info.width, info.height, info.sha256), said


def same_files(examples: Sequence[Example]) -> list[Finding]:
    """Return a finding for each file that is equal, byte for byte, to one before it."""
    first: dict[str, Example] = {}
    findings = []
    for example in examples:
        original = first.setdefault(example.sha256, example)
        if original is not example:
            name, other = (shown(f"{e.label}/{e.path.name}") for e in (example, original))
            what = f"{name} is the same file as {other}; both are used."
            findings.append(finding("duplicate-picture", what, example.path, related=(original.path,)))
    return findings
