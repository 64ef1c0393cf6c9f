"""From folders of pictures and captions to a Dataset in which every picture is used or listed with a reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasmith.dataset import metadata
from lorasmith.dataset.finding import KINDS, Finding, data_error, finding, shown
from lorasmith.dataset.folder import Folder, Listing, class_folders, list_folder
from lorasmith.dataset.picture import PictureError, probe
from lorasmith.errors import DataError

CAPTION_SUFFIXES = (".txt", ".caption")
_UNREAD_METADATA = frozenset((metadata.NAME, "metadata.csv", "metadata.parquet"))
_NAMES_SHOWN = 5


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
    """

    path: Path
    caption: str
    label: str
    width: int
    height: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """What was read: ``pictures_found == len(examples) + excluded_pictures``, always.

    Args:
        examples: the pictures that are used, in the order of the folders and of their names.
        findings: what is wrong or doubtful.
        pictures_found: files in the folders that are pictures by their name or that metadata.jsonl names.
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
        """The findings that leave out a picture or a line of metadata.jsonl."""
        return tuple(f for f in self.findings if f.excludes)

    @property
    def excluded_pictures(self) -> int:
        """How many of the pictures found are not used."""
        return sum(KINDS[f.code].about == "picture" for f in self.excluded)

    @property
    def sha256(self) -> str:
        """A hash over labels, contents and captions, in hexadecimal; paths and order do not matter."""
        rows = sorted([e.label, e.sha256, e.caption] for e in self.examples)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_dataset(folders: Sequence[Path], *, strict: bool = False) -> Dataset:
    """Read folders of pictures, one class each; every picture is decoded once, one at a time.

    Captions come from metadata.jsonl (Hugging Face ImageFolder), else from a .txt or .caption file beside each
    picture, else from the folder's name. A folder that holds only folders stands for those.

    Args:
        folders: the folders.
        strict: refuse to leave anything out.

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
    return Dataset(tuple(examples), (*findings, *_copies(examples)), len(examples) + excluded)


def _read_folder(folder: Folder) -> Dataset:
    listing = list_folder(folder.path)
    captions, findings = _captions(folder, listing)
    findings = [*listing.findings, *findings]
    if any(f.fatal for f in findings):
        return Dataset((), tuple(findings), 0)
    examples: list[Example] = []
    pictures = sorted({*listing.pictures, *captions})
    for path in pictures:
        example, said = _read_picture(folder, path, captions.get(path))
        examples += [example] if example else []
        findings += said
    for link in listing.links_out:
        name = shown(link.relative_to(folder.path).as_posix())
        findings.append(finding("link-outside", f"{name} is a link to a file outside {shown(folder.label)}.", link))
    found = len(pictures) + len(listing.links_out)
    if not found:
        findings.append(finding("no-pictures", f"The folder {shown(folder.label)} has no pictures.", folder.path))
    elif not examples:
        what = f"None of the pictures in {shown(folder.label)} can be used ({found} found)."
        findings.append(finding("nothing-usable", what, folder.path))
    return Dataset(tuple(examples), tuple(findings), found)


def _read_picture(folder: Folder, path: Path, caption: str | Finding | None) -> tuple[Example | None, list[Finding]]:
    """Return the example that a picture makes, if it does, and what there is to say about it."""
    name = shown(f"{folder.label}/{path.relative_to(folder.path).as_posix()}")
    if caption is None:
        return None, [finding("no-entry", f"{name} has no line in {metadata.NAME}.", path)]
    if isinstance(caption, Finding):
        return None, [caption]
    try:
        info = probe(path)
    except PictureError as error:
        return None, [finding(error.code, error.what, path)]
    said = []
    if not caption:
        said.append(finding("empty-caption", f'{name} has no caption; "{shown(folder.words)}" is used.', path))
    if info.pages > 1:
        said.append(finding("several-pages", f"{name} has {info.pages} pages; the first is used.", path))
    return Example(path, caption or folder.words, folder.label, info.width, info.height, info.sha256), said


def _captions(folder: Folder, listing: Listing) -> tuple[dict[Path, str | Finding], list[Finding]]:
    """Return each picture's caption, empty if it has none, or why it cannot be read; and what there is to say."""
    findings: list[Finding] = []
    captions: dict[Path, str | Finding] = {}
    used: set[Path] = set()
    if (folder.path / metadata.NAME).is_file():
        used = {folder.path / metadata.NAME}
        captions, findings = _from_metadata(folder)
    elif sidecars := _sidecars(listing):
        used = set(sidecars.values())
        captions = {picture: _sidecar_caption(sidecars.get(picture), picture) for picture in listing.pictures}
    else:
        captions = dict.fromkeys(listing.pictures, folder.words)
        what = f'The pictures in {shown(folder.label)} have no captions; "{shown(folder.words)}" is used for all.'
        findings.append(finding("no-captions", what, folder.path))
    others = [path for path in listing.others if path not in used]
    for path in others:
        if path.name in _UNREAD_METADATA:
            what = f"{shown(folder.label)}/{shown(path.relative_to(folder.path).as_posix())} is not read."
            findings.append(finding("unread-metadata", what, path))
    if others:
        names = ", ".join(shown(path.relative_to(folder.path).as_posix()) for path in others[:_NAMES_SHOWN])
        more = f" and {len(others) - _NAMES_SHOWN} more" if len(others) > _NAMES_SHOWN else ""
        what = f"Not pictures by their name, so left alone in {shown(folder.label)}: {names}{more}."
        findings.append(finding("unused-files", what, folder.path))
    return captions, findings


def _from_metadata(folder: Folder) -> tuple[dict[Path, str | Finding], list[Finding]]:
    captions: dict[Path, str | Finding] = {}
    findings: list[Finding] = []
    unusual: set[str] = set()
    for item in metadata.read_metadata(folder.path):
        if isinstance(item, Finding):
            findings.append(item)
        else:
            captions[item.path] = item.caption
            unusual |= {item.key} - {"", metadata.CAPTION_KEYS[0]}
    for key in sorted(unusual):
        what = f'The captions in {shown(folder.label)}/{metadata.NAME} are read from "{key}".'
        findings.append(finding("caption-key", what, folder.path / metadata.NAME))
    return captions, findings


def _sidecars(listing: Listing) -> dict[Path, Path]:
    """Return the caption file beside each picture that has one."""
    others = set(listing.others)
    pairs = ((p, p.with_suffix(suffix)) for suffix in reversed(CAPTION_SUFFIXES) for p in listing.pictures)
    return {picture: text for picture, text in pairs if text in others}


def _sidecar_caption(path: Path | None, picture: Path) -> str | Finding:
    if path is None:
        return ""
    try:
        with path.open("rb") as stream:
            raw = stream.read(metadata.LONGEST_LINE + 1)
        caption = metadata.clean_caption(raw.decode("utf-8-sig")) if len(raw) <= metadata.LONGEST_LINE else None
    except (OSError, UnicodeDecodeError):
        caption = None
    if caption is None:
        what = f"{shown(path.name)}, the caption of {shown(picture.name)}, cannot be read as UTF-8 text."
        return finding("bad-caption", what, picture)
    return caption


def _copies(examples: list[Example]) -> list[Finding]:
    first: dict[str, Example] = {}
    findings = []
    for example in examples:
        original = first.setdefault(example.sha256, example)
        if original is not example:
            name, other = (shown(f"{e.label}/{e.path.name}") for e in (example, original))
            what = f"{name} is the same file as {other}; both are used."
            findings.append(finding("duplicate-picture", what, example.path))
    return findings
