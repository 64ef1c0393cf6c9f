"""What a class's folder offers before any picture is decoded: its pictures, each with its caption."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorasmith.dataset import metadata
from lorasmith.dataset.finding import Finding, finding, shown
from lorasmith.dataset.folder import Folder, Listing, list_folder
from lorasmith.dataset.metadata_tables import parquet_is_readable

CAPTION_SUFFIXES = (".txt", ".caption")
_NOT_CAPTIONS = frozenset(("readme", "license", "licence", "copying", "notes", "sample_prompts", "requirements"))
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Caption:
    """A caption and where it is written.

    Args:
        text: on one line; empty where the picture has none.
        file: the metadata file, or the file beside the picture; None where there is none.
        line: of ``file``, from 1; None where the whole file is the caption.
    """

    text: str
    file: Path | None = None
    line: int | None = None


@dataclass(frozen=True)
class Listed:
    """A file that is a picture by its name or that a metadata file names.

    Args:
        path: resolved.
        folder: its class.
        caption: a Finding where it cannot be used.
    """

    path: Path
    folder: Folder
    caption: Caption | Finding

    @property
    def name(self) -> str:
        """The class and the name in it, fit to print, as ``axe/1.png``."""
        return shown(f"{self.folder.label}/{self.path.relative_to(self.folder.path).as_posix()}")


@dataclass(frozen=True)
class Contents:
    """What lies in a class's folder.

    Args:
        folder: the class.
        captions_from: where the captions come from, in words; empty where the folder's name stands for them.
        listed: the pictures, sorted.
        findings: what is wrong or doubtful about the folder and its captions.
        refused: one for each picture that is not even looked at, as a link that leads out.
    """

    folder: Folder
    captions_from: str
    listed: tuple[Listed, ...]
    findings: tuple[Finding, ...]
    refused: tuple[Finding, ...]

    @property
    def pictures_found(self) -> int:
        return len(self.listed) + len(self.refused)

    def verdict(self, usable: int) -> tuple[Finding, ...]:
        """Return what there is to say of the folder when ``usable`` of its pictures turned out to be so."""
        label = shown(self.folder.label)
        if not self.pictures_found:
            return (finding("no-pictures", f"The folder {label} has no pictures.", self.folder.path),)
        if not usable:
            what = f"None of the pictures in {label} can be used ({self.pictures_found} found)."
            return (finding("nothing-usable", what, self.folder.path),)
        return ()


def list_contents(folder: Folder) -> Contents:
    """Return what lies in a folder and its subfolders.

    Captions come from its metadata file, where it has none for a picture from a .txt or .caption file beside that,
    and where there is neither, from the folder's name.
    """
    listing = list_folder(folder.path)
    source = metadata.find_metadata(folder.path)
    sidecars = _sidecars(listing)
    captions: dict[Path, Caption | Finding] = {}
    findings = [*listing.findings]
    said = ""
    if source is not None:
        captions, about = _from_metadata(folder, source)
        findings += about
        if any(f.fatal for f in findings):
            return Contents(folder, source.name, (), tuple(findings), ())
        said = source.name
        beside = {picture: text for picture, text in sidecars.items() if picture not in captions}
        captions |= {picture: _sidecar_caption(folder, text, picture) for picture, text in beside.items()}
        if beside:
            said += f" and {_count(len(beside), 'file')} beside the pictures"
            what = f"{_count(len(beside), 'caption')} in {shown(folder.label)} from files beside the pictures; "
            findings.append(finding("mixed-captions", f"{what}the others from {source.name}.", folder.path))
    elif sidecars:
        said = f"{_count(len(sidecars), 'file')} beside the pictures"
        for picture in listing.pictures:
            text = sidecars.get(picture)
            captions[picture] = Caption("") if text is None else _sidecar_caption(folder, text, picture)
    else:
        captions = {picture: Caption(folder.words) for picture in listing.pictures}
        if listing.pictures:
            what = f'The pictures in {shown(folder.label)} have no captions; "{shown(folder.words)}" is used for all.'
            findings.append(finding("no-captions", what, folder.path))
    used = {*sidecars.values(), *([source] if source else [])}
    findings += _others(folder, [path for path in listing.others if path not in used], bool(sidecars))
    paths = sorted({*listing.pictures, *captions})
    listed = (Listed(path, folder, captions.get(path) or _no_entry(folder, path, source)) for path in paths)
    return Contents(folder, said, tuple(listed), (*findings, *_links(folder, listing)), _refused(folder, listing))


def _no_entry(folder: Folder, path: Path, source: Path | None) -> Finding:
    name = shown(f"{folder.label}/{path.relative_to(folder.path).as_posix()}")
    return finding("no-entry", f"{name} has no line in {source.name if source else metadata.NAME}.", path)


def _from_metadata(folder: Folder, source: Path) -> tuple[dict[Path, Caption | Finding], list[Finding]]:
    captions: dict[Path, Caption | Finding] = {}
    findings: list[Finding] = []
    unusual: set[str] = set()
    for item in metadata.read_metadata(folder.path, source.name):
        if isinstance(item, Finding):
            findings.append(item)
        else:
            text = item.caption
            captions[item.path] = Caption(text, source, item.line) if isinstance(text, str) else text
            unusual |= {item.key} - {"", metadata.CAPTION_KEYS[0]}
    for key in sorted(unusual):
        what = f'The captions in {shown(folder.label)}/{source.name} are read from "{key}".'
        findings.append(finding("caption-key", what, source))
    return captions, findings


def _sidecars(listing: Listing) -> dict[Path, Path]:
    """Return the caption file beside each picture that has one."""
    others = set(listing.others)
    pairs = ((p, p.with_suffix(suffix)) for suffix in reversed(CAPTION_SUFFIXES) for p in listing.pictures)
    return {picture: text for picture, text in pairs if text in others}


def _sidecar_caption(folder: Folder, path: Path, picture: Path) -> Caption | Finding:
    """Return the caption in a file beside a picture; a link out of the folder, or what is no file, is not opened."""
    if path.is_symlink() and not _leads_inside(folder, path):
        what = f"{shown(path.name)}, the caption of {shown(picture.name)}, is a link out of the folder, or to nothing."
        return finding("bad-caption", what, picture)
    if not path.is_file():  # a pipe would be waited on for ever
        return finding("bad-caption", f"{shown(path.name)}, the caption of {shown(picture.name)}, is no file.", picture)
    try:
        with path.open("rb") as stream:
            raw = stream.read(metadata.LONGEST_LINE + 1)
        text = metadata.clean_caption(raw.decode("utf-8-sig")) if len(raw) <= metadata.LONGEST_LINE else None
    except OSError as error:
        what = f"{shown(path.name)}, the caption of {shown(picture.name)}, cannot be read: {error.strerror}."
        return finding("bad-caption", what, picture)
    except UnicodeDecodeError:
        text = None
    if text is None:
        what = f"{shown(path.name)}, the caption of {shown(picture.name)}, cannot be read as UTF-8 text."
        return finding("bad-caption", what, picture)
    return Caption(text, path)


def _leads_inside(folder: Folder, link: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(folder.path)
    except (OSError, RuntimeError):  # nowhere, or a circle of links
        return False


def _others(folder: Folder, others: list[Path], has_sidecars: bool) -> list[Finding]:
    """Return what there is to say about files that are neither pictures nor used captions."""
    findings = []
    label = shown(folder.label)
    for path in others:
        name = shown(path.relative_to(folder.path).as_posix())
        if path.name in metadata.NAMES:
            needs = path.suffix == ".parquet" and path.parent == folder.path and not parquet_is_readable()
            why = "; reading it needs pyarrow: pip install pyarrow" if needs else ""
            findings.append(finding("unread-metadata", f"{label}/{name} is not read{why}.", path))
        elif has_sidecars and path.suffix in CAPTION_SUFFIXES and path.stem.lower() not in _NOT_CAPTIONS:
            what = f"{label}/{name} is a caption without a picture of that name."
            findings.append(finding("caption-without-picture", what, path))
    if others:
        names = ", ".join(shown(path.relative_to(folder.path).as_posix()) for path in others[:_NAMES_SHOWN])
        more = f" and {len(others) - _NAMES_SHOWN} more" if len(others) > _NAMES_SHOWN else ""
        what = f"Not pictures by their name, so left alone in {label}: {names}{more}."
        findings.append(finding("unused-files", what, folder.path))
    return findings


def _links(folder: Folder, listing: Listing) -> list[Finding]:
    return [
        finding("link", f"{_within(folder, path)} is a link to {shown(path.resolve().name)}.", path)
        for path in listing.links
    ]


def _refused(folder: Folder, listing: Listing) -> tuple[Finding, ...]:
    out = (
        finding("link-outside", f"{_within(folder, p)} is a link to a file outside {shown(folder.label)}.", p)
        for p in listing.links_out
    )
    broken = (
        finding("unreadable-file", f"{_within(folder, p)} is a link that leads nowhere, or in a circle.", p)
        for p in listing.broken
    )
    return (*out, *broken)


def _within(folder: Folder, path: Path) -> str:
    return shown(path.relative_to(folder.path).as_posix())


def _count(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"
