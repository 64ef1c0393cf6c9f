"""Unpack the pictures and captions of a zip archive that may have been made by anyone.

One member at a time is written to a folder of ours, under a name that was taken apart and put together again, and
only as many bytes as a picture may have. What is refused becomes a finding; the rest goes on.
"""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from lorasmith.dataset import metadata
from lorasmith.dataset.contents import CAPTION_SUFFIXES
from lorasmith.dataset.finding import Finding, finding, shown
from lorasmith.dataset.picture import SUFFIXES, UNSUPPORTED_SUFFIXES

MAX_MEMBER = 256 << 20  # bytes; a 16-bit TIFF of 40 megapixels
MAX_TEXT = 32 << 20
MAX_TOTAL = 64 << 30
MAX_MEMBERS = 200_000
_MAX_DIRECTORY = 64 << 20  # bytes of the list of members, which is read as a whole
_SUSPECT_RATIO = 200  # no picture, not even a plain bitmap of one colour that is of any use, is packed so well
_FREE_ENOUGH = 32 << 20  # below that a high ratio does no harm
_SPARE_DISK = 1 << 30
_ARCHIVES = frozenset((".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".cbz", ".cbr"))
_END = struct.Struct("<4s4H2LH")  # end of central directory, section 4.3.16 of PKWARE's APPNOTE.TXT
_NAMES_SHOWN = 5


def is_archive(path: Path) -> bool:
    """Return whether a path is a zip file by its name."""
    return path.suffix.lower() == ".zip" and path.is_file()


def unpack(archive: Path, into: Path) -> Iterator[tuple[int, int] | Finding]:
    """Write an archive's pictures, captions and metadata files below ``into``, which is an empty folder of ours.

    Yields:
        How many members of how many are done, now and then; and findings, whose file is the archive followed by the
        member's name.
    """
    try:
        _refuse_endless_lists(archive)
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            yield from _unpack_all(archive, opened, members, into)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else shown(error)
        yield finding("bad-archive", f"{shown(archive.name)} cannot be read as a zip archive: {reason}.", archive)


def _refuse_endless_lists(archive: Path) -> None:
    """Raise BadZipFile for a list of members so long that reading it would take all memory."""
    with archive.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _END.size - 0xFFFF))
        tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise zipfile.BadZipFile("it has no list of members")
    _, _, _, _, count, directory, _, _ = _END.unpack_from(tail, at)
    if directory != 0xFFFFFFFF and directory > _MAX_DIRECTORY:
        raise zipfile.BadZipFile(f"its list of members has {directory:,} bytes")
    if count == 0xFFFF or directory == 0xFFFFFFFF:  # a 64-bit archive; its record stands before
        record = tail.rfind(b"PK\x06\x06", 0, at)
        counted, directory = struct.unpack_from("<QQ", tail, record + 32) if record >= 0 else (0, 0)
        if counted > MAX_MEMBERS or directory > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"it lists {counted:,} members; {MAX_MEMBERS:,} are the limit")


def _unpack_all(
    archive: Path, opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], into: Path
) -> Iterator[tuple[int, int] | Finding]:
    room = min(MAX_TOTAL, max(0, shutil.disk_usage(into).free - _SPARE_DISK))
    taken: dict[str, str] = {}
    unused: list[str] = []
    for done, member in enumerate(members):
        yield done, len(members)
        name = _safe_name(member.filename)
        problem = _refusal(member, name, room)
        if problem is None and name is not None:
            if _is_hidden(name):
                continue
            if not _is_wanted(name):
                unused.append(shown(member.filename))
                continue
            if (first := taken.setdefault(str(name).casefold(), member.filename)) != member.filename or (
                into / name
            ).exists():
                problem = ("archive-twice", f"has the same name as {shown(first)}")
            else:
                size, problem = _write(opened, member, into / name)
                room -= size
        if problem is not None:
            code, what = problem
            yield finding(
                code, f"{shown(member.filename)} in {shown(archive.name)} {what}.", archive / _printable(member)
            )
    yield len(members), len(members)
    if unused:
        more = f" and {len(unused) - _NAMES_SHOWN} more" if len(unused) > _NAMES_SHOWN else ""
        what = f"Not pictures by their name, so left alone in {shown(archive.name)}: {', '.join(unused[:_NAMES_SHOWN])}"
        yield finding("unused-files", f"{what}{more}.", archive)


def _safe_name(name: str) -> PurePosixPath | None:
    """Return a member's name as a relative path, or None if it leads anywhere else on any system."""
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or "\0" in name or "://" in name:
        return None
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or any(":" in part for part in parts):
        return None
    return PurePosixPath(*parts)


def _is_hidden(name: PurePosixPath) -> bool:
    return name.parts[0] == "__MACOSX" or any(part.startswith(".") for part in name.parts)


def _is_wanted(name: PurePosixPath) -> bool:
    wanted = SUFFIXES | UNSUPPORTED_SUFFIXES | set(CAPTION_SUFFIXES)
    return name.suffix.lower() in wanted or name.name in metadata.NAMES


def _refusal(member: zipfile.ZipInfo, name: PurePosixPath | None, room: int) -> tuple[str, str] | None:
    """Return why a member is not unpacked, by what the list of members says of it."""
    if name is None:
        return "archive-name", "has a name that leads out of the archive"
    kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0  # 3 is Unix
    if kind not in (0, stat.S_IFREG):
        return "archive-link", "is a link" if kind == stat.S_IFLNK else "is a device or a pipe, not a file"
    if name.suffix.lower() in _ARCHIVES:
        return "archive-nested", "is an archive itself"
    if not _is_wanted(name):
        return None
    if member.flag_bits & 1:
        return "archive-encrypted", "needs a password"
    if member.file_size > _limit(name):
        return "archive-too-large", f"unpacks to {member.file_size:,} bytes; {_limit(name):,} are the limit"
    if member.file_size > _FREE_ENOUGH and member.file_size > _SUSPECT_RATIO * max(1, member.compress_size):
        return "archive-too-large", f"unpacks to {member.file_size // max(1, member.compress_size):,} times its size"
    if member.file_size > room:
        return (
            "archive-too-large",
            "does not fit any more: the archive unpacks to more than the disk or the limit holds",
        )
    return None


def _limit(name: PurePosixPath) -> int:
    return MAX_MEMBER if name.suffix.lower() in SUFFIXES | UNSUPPORTED_SUFFIXES else MAX_TEXT


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> tuple[int, tuple[str, str] | None]:
    """Unpack a member, never more bytes than it declares; return how many were written and what went wrong."""
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as source, path.open("xb") as target:
            while block := source.read(1 << 20):
                written += len(block)
                if written > member.file_size:
                    raise zipfile.BadZipFile("it is longer than it says")
                target.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        path.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else shown(error) or "it is cut short"
        return 0, ("archive-damaged", f"cannot be unpacked: {reason}")
    return written, None


def _printable(member: zipfile.ZipInfo) -> str:
    return shown(member.filename.replace("\\", "/").lstrip("/"), limit=200)
