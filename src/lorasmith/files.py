"""Write files so that each is complete or absent, and turn what the disk refuses into words a user can act on.

Standard library only. Every change on the disk goes through the few functions at the end, so that tests can fail or
kill the process before each of them: they call ``before``, where that is set.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorasmith.errors import OutputError

before: Callable[[str, Path], None] | None = None  # called with "open", "write", "sync", ... and the path; for tests

_BLOCK = 1 << 20  # bytes in one write
# A scanner or an indexer that holds a file: Windows' codes for access denied, sharing and lock violations.
_HELD = (5, 32, 33)
_PATIENCE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between tries

_FIXES = {
    errno.ENOSPC: "Free some space on that disk, or choose a folder on another one.",
    errno.EDQUOT: "Your disk quota is used up: free some space, or choose a folder on another disk.",
    errno.EACCES: "Choose a folder you may write to, or close the program that has the file open.",
    errno.EPERM: "Choose a folder you may write to, or close the program that has the file open.",
    errno.EROFS: "That disk is read-only: choose a folder on another one.",
    errno.ENAMETOOLONG: "Choose a shorter name or a folder nearer the root of the disk.",
    errno.ENOTDIR: "A part of that path is a file: choose another folder.",
    errno.EEXIST: "A file of that name is in the way: choose another name.",
    errno.EISDIR: "A folder of that name is in the way: choose another name.",
    errno.EFBIG: "The disk's format does not hold files this large: choose another disk.",
}


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path``, complete or not at all.

    Args:
        durable: wait until it is on the disk, so that it outlives a power failure; see ``replacing``.

    Raises:
        OutputError: the disk refuses.
    """
    temporary = _temporary(path)
    with _explained(path, temporary):
        try:
            _write(temporary, data, durable=durable)
            rename(temporary, path)
        finally:
            _discard(temporary)
        if durable:
            sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> bool:
    """Write ``data`` to ``path`` as ``write_bytes`` does, unless a file is there; return whether it was written.

    Two processes that write the same name at the same time never lose one's file.

    Raises:
        OutputError: the disk refuses.
    """
    temporary = _temporary(path)
    with _explained(path, temporary):
        try:
            _write(temporary, data, durable=True)
            if not _moved(temporary, path):
                return False
        finally:
            _discard(temporary)
        sync_folder(path.parent)
    return True


def _moved(source: Path, path: Path) -> bool:
    """Give a file its name unless that is taken; return whether it was free."""
    try:
        os.link(source, path)  # unlike a rename it fails where a file is in the way
    except FileExistsError:
        return False
    except OSError:  # a disk without hard links, as exFAT
        if path.exists():
            return False
        rename(source, path)
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with ``\\n`` line ends on every system; see ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; see ``write_bytes`` and ``json_text``."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as standard JSON that UTF-8 can hold: a NaN or infinity, which JSON lacks, becomes null.

    What a file's name has that is not Unicode stays, escaped as JSON does it.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, with the same suffix, to be written by the block.

    When the block ends without an error, what it wrote is forced to disk and takes the place of ``path`` in one
    step; otherwise it is removed and ``path`` is as it was.

    Args:
        durable: False leaves the time of writing to the system, which is many times as fast. After a power failure
            the file may then be damaged, so this is only for what its reader checks and can make again.

    Raises:
        OutputError: the disk refuses.
    """
    temporary = _temporary(path)
    with _explained(path, temporary):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors writes files that only their owner may read
            if durable:
                sync_file(temporary)
            rename(temporary, path)
        finally:
            _discard(temporary)
        if durable:
            sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.parent / f".tmp-{secrets.token_hex(6)}{path.suffix}"


def new_folder(path: Path) -> Path:
    """Make ``path`` a folder, with its parents; one that is already there is kept as it is.

    Raises:
        OutputError: the disk refuses, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # about the folder itself or any above it
        raise output_error(path, error) from error
    return path


def require_writable(folder: Path, need_bytes: int = 0) -> None:
    """Make ``folder`` if it is not there, and prove that a file can be written to it and ``need_bytes`` fit.

    Raises:
        OutputError: the disk refuses or is too full.
    """
    new_folder(folder)
    probe = folder / f".tmp-{secrets.token_hex(6)}"
    with _explained(folder, probe):
        try:
            _write(probe, b"\0", durable=False)
        finally:
            _discard(probe)
        free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise OutputError(
            f"The disk is too full: {need_bytes / 2**20:,.0f} MiB are needed and {free / 2**20:,.0f} MiB are free.",
            where=str(folder),
            fix=_FIXES[errno.ENOSPC],
        )


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal.

    Raises:
        OSError: the file cannot be read; the caller knows what the file was for.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def output_error(path: Path, error: BaseException) -> OutputError:
    """Return the OutputError that says why ``path`` could not be written."""
    code = _errno(error)
    reason = os.strerror(code) if code else str(error)
    fix = _FIXES.get(code or 0, "Choose another folder.")
    return OutputError(f"{path.name or path} cannot be written: {reason}.", where=str(path), fix=fix)


@contextmanager
def _explained(path: Path, written: Path) -> Iterator[None]:
    """Turn what the disk refuses into an OutputError about ``path``; errors about other files pass unchanged."""
    try:
        yield
    except Exception as error:
        other = getattr(error, "filename", None)
        if _errno(error) is None or (other and Path(os.fsdecode(other)).parent != written.parent):
            raise
        raise output_error(path, error) from error


def _errno(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # Libraries written in Rust (safetensors) name the system's error number only in their text.
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


def rename(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``, in place of a file of that name.

    Where another program, such as a virus scanner on Windows, holds the file for a moment, this waits and tries again
    for about three seconds.

    Raises:
        OSError: the disk refuses.
    """
    for pause in (*_PATIENCE, None):
        try:
            about_to("rename", target)
            source.replace(target)
            return
        except PermissionError as error:
            if pause is None or getattr(error, "winerror", None) not in _HELD:
                raise
            time.sleep(pause)


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` with what is in it, as far as the disk allows; what is not there is no fault."""
    with suppress(OSError):
        about_to("remove", folder)
        shutil.rmtree(folder)


def sync_file(path: Path) -> None:
    """Force a file to disk.

    Raises:
        OSError: the disk refuses.
    """
    about_to("sync", path)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to disk, where the system can do that (Windows cannot).

    Raises:
        OSError: the disk is full or broken.
    """
    try:
        about_to("sync folder", folder)
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    about_to("open", path)
    with path.open("wb", buffering=0) as stream:
        view = memoryview(data)
        while view:
            about_to("write", path)
            view = view[stream.write(view[:_BLOCK]) :]
        if durable:
            about_to("sync", path)
            os.fsync(stream.fileno())
        about_to("close", path)


def _discard(temporary: Path) -> None:
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def about_to(call: str, path: Path) -> None:
    """Tell ``before``, where that is set, what is about to be done to ``path``."""
    if before is not None:
        before(call, path)
