"""What lies in the folders that were named."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorasmith.dataset import metadata
from lorasmith.dataset.finding import Finding, finding, shown
from lorasmith.dataset.picture import SUFFIXES, UNSUPPORTED_SUFFIXES

_CLUTTER = frozenset(("thumbs.db", "desktop.ini"))


@dataclass(frozen=True)
class Folder:
    """One class of pictures.

    Args:
        path: resolved.
        label: the folder's name as it was given, which is the name of the class.
    """

    path: Path
    label: str

    @property
    def words(self) -> str:
        """The folder's name as words, for pictures without a caption; a leading count as in ``10_axe`` is dropped."""
        return " ".join(re.sub(r"^\d+_", "", self.label).replace("_", " ").replace("-", " ").split()) or "picture"

    @property
    def repeats(self) -> int | None:
        """How often kohya's scripts would show each picture in an epoch: the 10 of ``10_axe``."""
        found = re.match(r"(\d{1,6})_", self.label)
        return int(found.group(1)) if found else None


@dataclass(frozen=True)
class Listing:
    """The files in a folder and its subfolders, sorted.

    Args:
        pictures: files that are pictures by their name, resolved: each is there once, links or not.
        links_out: links to pictures that lead out of the folder, as they are named.
        broken: links to pictures that lead nowhere or in a circle, as they are named.
        links: links to pictures that stay in the folder, as they are named.
        others: what is neither a picture nor hidden.
        findings: folders that cannot be read.
    """

    pictures: tuple[Path, ...]
    links_out: tuple[Path, ...]
    broken: tuple[Path, ...]
    links: tuple[Path, ...]
    others: tuple[Path, ...]
    findings: tuple[Finding, ...]


def class_folders(named: Iterable[Path]) -> tuple[list[Folder], list[Finding]]:
    """Return the folders that hold pictures; a folder of nothing but folders stands for those of them that do."""
    folders: dict[Path, Folder] = {}
    findings: list[Finding] = []
    for given in named:
        name = shown(given, limit=None)
        try:
            if not given.is_dir():
                if given.suffix.lower() == ".zip" and given.is_file():
                    what = f"{name} is an archive, which only lorasmith check reads: unpack it first."
                    findings.append(finding("not-a-folder", what, given))
                    continue
                code, what = ("not-a-folder", "not a folder") if given.exists() else ("missing-folder", "not there")
                findings.append(finding(code, f"The folder {name} is {what}.", given))
                continue
            top = Folder(given.resolve(), Path(os.path.abspath(given)).name)  # noqa: PTH100 -- resolve() loses the name
            parts = _holding_pictures(top)
        except OSError as error:
            findings.append(finding("unreadable-folder", f"The folder {name} cannot be read: {error.strerror}.", given))
            continue
        if not parts:
            findings.append(finding("no-pictures", f"The folder {name} has no pictures.", given))
        elif parts != [top]:
            classes = ", ".join(shown(part.label) for part in parts)
            findings.append(finding("subfolders", f"The subfolders of {name} are read as classes: {classes}.", given))
        for part in parts:
            if part.path in folders:
                what = f"The folder {shown(part.path, limit=None)} is named twice; it is read once."
                findings.append(finding("folder-twice", what, part.path))
            folders.setdefault(part.path, part)
    for inner in folders:
        if outer := next((path for path in folders if path in inner.parents), None):
            what = f"The folder {shown(inner, limit=None)} lies in another that is named, {shown(outer, limit=None)}."
            findings.append(finding("folder-in-folder", what, inner))
    return list(folders.values()), findings


def _holding_pictures(folder: Folder) -> list[Folder]:
    with os.scandir(folder.path) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    if any(_is_picture(Path(e.name)) or e.name in metadata.NAMES for e in entries if not e.is_dir()):
        return [folder]
    subfolders = [e for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
    return [part for e in subfolders for part in _holding_pictures(Folder(folder.path / e.name, e.name))]


def list_folder(folder: Path) -> Listing:
    """Return what lies in ``folder`` (resolved) and its subfolders; links to folders are not followed."""
    pictures: set[Path] = set()
    links_out: list[Path] = []
    broken: list[Path] = []
    links: list[Path] = []
    others: list[Path] = []
    findings: list[Finding] = []

    def refused(error: OSError) -> None:
        path = Path(error.filename)
        what = f"The folder {shown(path, limit=None)} cannot be read: {error.strerror}."
        findings.append(finding("unreadable-folder", what, path))

    for parent, subfolders, files in os.walk(folder, onerror=refused):
        if not os.access(parent, os.X_OK):  # its names can be listed, and nothing in it opened
            refused(PermissionError(errno.EACCES, os.strerror(errno.EACCES), parent))
            subfolders[:] = []
            continue
        others.extend(path for name in subfolders if (path := Path(parent, name)).is_symlink())
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(parent, name) for name in files):
            if not _is_picture(path):
                if not path.name.startswith(".") and path.name.lower() not in _CLUTTER:
                    others.append(path)
            elif (target := _target(path)) is None:
                broken.append(path)
            elif target.is_relative_to(folder):
                pictures.add(target)
                links.extend([path] if path.is_symlink() else [])
            else:
                links_out.append(path)
    kept, out, nowhere, inner, rest = (tuple(sorted(kind)) for kind in (pictures, links_out, broken, links, others))
    return Listing(kept, out, nowhere, inner, rest, tuple(findings))


def _is_picture(path: Path) -> bool:
    # macOS leaves a "._1.png" beside 1.png on foreign disks; hidden files are never meant.
    return path.suffix.lower() in SUFFIXES | UNSUPPORTED_SUFFIXES and not path.name.startswith(".")


def _target(path: Path) -> Path | None:
    """Return the file that a name stands for, links followed; None where a link leads nowhere."""
    try:
        return None if path.is_symlink() and not path.exists() else path.resolve()
    except (OSError, RuntimeError):  # a circle of links
        return None
