"""Where work is kept that would otherwise be done again, and the hashes of files that were read before.

Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lorasmith.errors import OutputError
from lorasmith.files import json_text, new_folder, write_bytes

_REMEMBERED = "hashes.json"
_MOST = 1000  # hashes remembered; the oldest go first
_LIMIT = 4 << 20  # bytes


def cache_folder() -> Path:
    """Return where encoded pictures are kept: ``LORASMITH_CACHE``, or a folder in the system's place for caches."""
    if chosen := os.environ.get("LORASMITH_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = _home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
    return root / "lorasmith" / "encoded"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir())


def remembered(what: str, files: tuple[Path, ...], make: Callable[[], str]) -> str:
    """Return ``make()``, or what it returned the last time for files of the same names, sizes and times.

    A cache that cannot be read or written costs time and nothing else.

    Args:
        what: names the question.
        files: that the answer depends on.
    """
    try:
        states = [(str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns, s.st_ino) for f in files]
    except OSError:
        return make()
    key = json.dumps([what, *states])
    store = cache_folder() / _REMEMBERED
    if found := _read(store).get(key):
        return found
    made = make()
    known = _read(store) | {key: made}
    with suppress(OutputError):
        new_folder(store.parent)
        write_bytes(store, json_text(dict(list(known.items())[-_MOST:])).encode(), durable=False)
    return made


def _read(store: Path) -> dict[str, str]:
    try:
        if store.stat().st_size > _LIMIT:
            return {}
        found = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
