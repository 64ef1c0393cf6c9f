"""The run folder: everything about one training, never overwritten.

runs/axe-001/
  recipe.toml        the resolved recipe, written before work begins
  provenance.json    versions, hardware, command, hashes of base and data
  events.jsonl       append-only, one event a line, each with its time (UTC)
  checkpoints/step-000400/   its files and manifest.json, whose presence means complete
  samples/step-000400/       pictures at fixed prompts and seeds; step-000000 is the base
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from lorasmith import __version__
from lorasmith.errors import RunError
from lorasmith.events import Event
from lorasmith.files import json_text, new_folder, output_error, sha256_file, sync_folder, write_json, write_text
from lorasmith.recipe.dump import dump_recipe
from lorasmith.recipe.schema import Recipe

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "Pillow")
_MANIFEST = "manifest.json"


class Run:
    """A run folder that this process holds the lock of. Make one with ``Run.create``; close it, or use ``with``."""

    def __init__(self, path: Path, recipe: Recipe, lock: FileLock) -> None:
        self.path = path
        self.recipe = recipe
        self._lock = lock
        self._provenance: dict[str, Any] = {}
        try:
            self._events = (path / "events.jsonl").open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise output_error(path / "events.jsonl", error) from error

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> Run:
        """Make a run folder at ``path`` and write the recipe and the provenance into it.

        Raises:
            RunError: the folder holds something already, or another process is using it.
            OutputError: it cannot be written.
        """
        _require_free(path)
        new_folder(path)
        lock = _locked(path)
        try:
            write_text(path / "recipe.toml", dump_recipe(recipe))
            run = cls(path, recipe, lock)
            try:
                run.record(**_circumstances())
            except BaseException:
                run.close()
                raise
        except BaseException:
            lock.release()
            shutil.rmtree(path, ignore_errors=True)  # it was empty, and the same command shall work again
            raise
        return run

    @staticmethod
    def new_path(parent: Path, name: str) -> Path:
        """Return ``parent/name-NNN`` with the number after the highest one there."""
        taken = [p.name.removeprefix(f"{name}-") for p in parent.glob(f"{name}-*")] if parent.is_dir() else []
        number = max((int(t) for t in taken if t.isdecimal()), default=0) + 1
        return parent / f"{name}-{number:03d}"

    def record(self, **facts: Any) -> None:
        """Add facts (JSON values) to provenance.json.

        Raises:
            OutputError: it cannot be written.
        """
        self._provenance |= facts
        write_json(self.path / "provenance.json", self._provenance)

    def append(self, event: Event) -> None:
        """Write an event to events.jsonl with the time.

        Raises:
            OutputError: it cannot be written.
        """
        record = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **event.to_json()}
        try:
            self._events.write(json_text(record) + "\n")
            self._events.flush()
        except OSError as error:
            raise output_error(self.path / "events.jsonl", error) from error

    def checkpoint_folder(self, step: int) -> Path:
        """Return where the checkpoint of an optimizer step lies, once it is complete."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def samples_folder(self, step: int) -> Path:
        """Return where the sample pictures of an optimizer step lie; step 0 is the base."""
        return self.path / "samples" / f"step-{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return complete_checkpoints(self.path)

    @contextmanager
    def commit_checkpoint(self, step: int) -> Iterator[Path]:
        """Yield a temporary folder; what the block writes into it becomes the checkpoint of ``step``.

        The manifest (SHA-256 and size of each file) is written last and the folder renamed into place, so a
        checkpoint is complete or absent however the process ends. One already there for that step is replaced.

        Raises:
            OutputError: the disk refuses; nothing is left behind.
        """
        final = self.checkpoint_folder(step)
        draft = new_folder(final.parent / f".{final.name}-{secrets.token_hex(4)}")
        try:
            yield draft
            files = sorted(p for p in draft.rglob("*") if p.is_file())
            entries = {p.relative_to(draft).as_posix(): _entry(p) for p in files}
            write_json(draft / _MANIFEST, {"step": step, "lorasmith": __version__, "files": entries})
            if final.exists():
                final.rename(draft.with_name(f"{draft.name}-old"))
            draft.rename(final)
            sync_folder(final.parent)
        except OSError as error:
            raise output_error(final, error) from error
        finally:
            for leftover in final.parent.glob(f"{draft.name}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def discard_if_empty(self) -> None:
        """Close, and remove the folder if the run ended before it made a sample or a checkpoint.

        So the same command can be given again once what stopped it is mended.
        """
        self.close()
        if not any((self.path / name).exists() for name in ("checkpoints", "samples")):
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Close the event file and release the lock."""
        with suppress(OSError):  # what a full disk refused is still in its buffer; append has told of it
            self._events.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def complete_checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run folder, oldest first; none where ``run`` is not one."""
    return [path for path in sorted((run / "checkpoints").glob("step-*")) if _is_complete(path)]


def _require_free(path: Path) -> None:
    try:
        taken = (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir()))
    except OSError as error:
        raise output_error(path, error) from error
    if taken:
        fresh = Run.new_path(path.parent, path.name.rstrip("0123456789").rstrip("-") or path.name)
        raise RunError(
            "That folder already holds something; a run never overwrites another.",
            where=str(path),
            fix=f"Choose a new folder, such as --out {fresh}",
        )


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / "run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            "Another process is using this run folder.", where=str(path), fix="Wait for it, or choose another folder."
        ) from None
    except OSError as error:
        raise output_error(path / "run.lock", error) from error
    return lock


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def _is_complete(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _circumstances() -> dict[str, Any]:
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "lorasmith": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
