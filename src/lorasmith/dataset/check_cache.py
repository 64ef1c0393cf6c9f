"""Keep what was seen of each picture, so that a second check reads almost nothing. One SQLite file; never unpickled.

A picture is known by its path, size and time of change, or, where those differ, by the hash of its bytes.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType

from lorasmith.cache import cache_folder
from lorasmith.dataset.seen import VERSION, Seen, from_json

_SCHEMA = """
    create table if not exists seen (sha text, version text, record text, thumbnail blob, primary key (sha, version));
    create table if not exists files (path text primary key, size integer, changed integer, sha text);
"""
_KEPT = 200_000  # pictures; the oldest go first


class CheckCache:
    """What was seen of pictures. A cache that cannot be read or written is replaced by one that forgets."""

    def __init__(self, path: Path | None) -> None:
        """Open a cache.

        Args:
            path: a file, which is made if it is not there; None for a cache that is forgotten on ``close``.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="lorasmith-") if path is None else None
        self._version = "-".join(map(str, VERSION))
        self._database = self._opened(path)

    def _opened(self, path: Path | None) -> sqlite3.Connection:
        if path is not None:
            for _ in range(2):
                with suppress(OSError, sqlite3.Error):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    return _connected(path)
                with suppress(OSError):
                    path.unlink(missing_ok=True)  # damaged; all in it can be made again
        self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="lorasmith-")
        return _connected(Path(self._temporary.name) / "seen.sqlite")

    def get(self, path: Path) -> Seen | None:
        """Return what was seen of a file that has not changed since."""
        try:
            state = path.stat()
            row = self._database.execute(
                "select sha from files where path = ? and size = ? and changed = ?",
                (_key(path), state.st_size, state.st_mtime_ns),
            ).fetchone()
        except (OSError, sqlite3.Error):
            return None
        return self.get_content(row[0]) if row else None

    def get_content(self, sha256: str) -> Seen | None:
        """Return what was seen of a file with these bytes."""
        with suppress(sqlite3.Error, KeyError, TypeError, ValueError):
            row = self._database.execute(
                "select record, thumbnail from seen where sha = ? and version = ?", (sha256, self._version)
            ).fetchone()
            return from_json(json.loads(row[0]), row[1]) if row else None
        return None

    def put(self, path: Path, seen: Seen) -> None:
        """Remember what was seen of a file."""
        with suppress(OSError, sqlite3.Error):
            state = path.stat()
            record = json.dumps(seen.to_json())
            self._database.execute(
                "insert or replace into seen values (?, ?, ?, ?)",
                (seen.info.sha256, self._version, record, seen.thumbnail),
            )
            self._database.execute(
                "insert or replace into files values (?, ?, ?, ?)",
                (_key(path), state.st_size, state.st_mtime_ns, seen.info.sha256),
            )

    def thumbnail(self, sha256: str) -> bytes | None:
        """Return the small JPEG of a file with these bytes."""
        with suppress(sqlite3.Error):
            row = self._database.execute(
                "select thumbnail from seen where sha = ? and version = ?", (sha256, self._version)
            ).fetchone()
            return bytes(row[0]) if row else None
        return None

    def commit(self) -> None:
        """Make what was put in lasting."""
        with suppress(sqlite3.Error):
            self._database.commit()

    def close(self) -> None:
        """Write what was put in, and forget the oldest of too many."""
        with suppress(sqlite3.Error):
            for table in ("seen", "files"):
                self._database.execute(
                    f"delete from {table} where rowid < (select max(rowid) from {table}) - ?", (_KEPT,)
                )
            self._database.commit()
        self._database.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> CheckCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def default_cache() -> Path:
    """Return where the cache lies."""
    return cache_folder() / "check.sqlite"


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=2)
    try:
        database.execute("pragma synchronous = off")
        database.executescript(_SCHEMA)
        with closing(database.execute("select count(*) from files")) as cursor:
            cursor.fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _key(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")  # a name may be no Unicode text
