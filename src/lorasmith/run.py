"""The run folder: everything about one training, never overwritten.

runs/axe-001/
  recipe.toml        the resolved recipe, written before work begins
  provenance.json    versions, hardware, command, hashes of base and data, and each time the run was gone on with
  events.jsonl       append-only, one event a line, each with its time (UTC)
  checkpoints/step-000400/   its files and manifest.json, whose presence means complete
  samples/step-000400/       pictures at fixed prompts and seeds; step-000000 is the base
  run.lock, owner.json       who is at work on it; see ``run_lock``
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lorasmith.errors import RunError
from lorasmith.events import Event
from lorasmith.files import (
    about_to,
    json_text,
    new_folder,
    output_error,
    remove_folder,
    rename,
    sync_file,
    sync_folder,
    write_json,
    write_text,
)
from lorasmith.recipe.dump import dump_recipe
from lorasmith.recipe.load import load_recipe
from lorasmith.recipe.schema import Recipe
from lorasmith.run_lock import LOCK_FILE, OWNER_FILE, RunLock
from lorasmith.run_log import LOG_FILE, rewind_log
from lorasmith.run_manifest import complete_checkpoints, fault, write_manifest
from lorasmith.run_record import PROVENANCE, RECIPE, circumstances, is_run, read_provenance

__all__ = ["Run", "complete_checkpoints"]

_OLD = "-old"


class Run:
    """A run folder that this process holds the lock of; close it, or use ``with``.

    ``Run.create`` makes a new one, ``Run.open`` takes one up again. A run that was taken up writes no event before
    ``rewind`` has said where it goes on.
    """

    def __init__(self, path: Path, recipe: Recipe, lock: RunLock, *, taken_up: bool = False) -> None:
        self.path, self.recipe, self.taken_up = path, recipe, taken_up
        self._lock = lock
        self._provenance: dict[str, Any] = {}
        self._events: TextIO | None = None
        self._waiting: list[str] = []
        if not taken_up:
            self._open_log()

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> Run:
        """Make a run folder at ``path`` and write the recipe and the provenance into it.

        Raises:
            RunError: the folder holds something already, or another process is using it.
            OutputError: it cannot be written.
        """
        _require_free(path)
        new_folder(path)
        lock = RunLock(path).acquire()
        try:
            write_text(path / RECIPE, dump_recipe(recipe))
            run = cls(path, recipe, lock)
            try:
                run.record(**circumstances())
            except BaseException:
                run.close()
                raise
        except BaseException:
            lock.release()
            shutil.rmtree(path, ignore_errors=True)  # it was empty, and the same command shall work again
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Take up the run at ``path`` again, and clear away what a kill has left half done.

        Raises:
            RunError: there is no run, it is damaged, or another process is using it.
            RecipeError: its recipe cannot be read.
        """
        if not is_run(path):
            raise RunError(
                "There is no run to go on with.",
                where=str(path),
                fix="Name the folder that holds recipe.toml and provenance.json; lorasmith runs lists them.",
            )
        lock = RunLock(path).acquire()
        try:
            run = cls(path, load_recipe(path / RECIPE), lock, taken_up=True)
            run._provenance = read_provenance(path)
            _clear(path)
        except BaseException:
            lock.release()
            raise
        return run

    @staticmethod
    def new_path(parent: Path, name: str) -> Path:
        """Return ``parent/name-NNN`` with the number after the highest one there."""
        taken = [p.name.removeprefix(f"{name}-") for p in parent.glob(f"{name}-*")] if parent.is_dir() else []
        number = max((int(t) for t in taken if t.isdecimal()), default=0) + 1
        return parent / f"{name}-{number:03d}"

    @property
    def provenance(self) -> dict[str, Any]:
        """What is recorded in provenance.json."""
        return dict(self._provenance)

    def record(self, **facts: Any) -> None:
        """Add facts (JSON values) to provenance.json.

        Raises:
            OutputError: it cannot be written.
        """
        self._provenance |= facts
        write_json(self.path / PROVENANCE, self._provenance)

    def change_recipe(self, recipe: Recipe) -> None:
        """Let the run go on with another recipe.

        Raises:
            OutputError: it cannot be written.
        """
        self.recipe = recipe
        write_text(self.path / RECIPE, dump_recipe(recipe))

    def append(self, event: Event) -> None:
        """Write an event to events.jsonl with the time.

        Raises:
            OutputError: it cannot be written.
        """
        record = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **event.to_json()}
        self._waiting.append(json_text(record) + "\n")
        if self._events is not None:
            self._write_waiting(self._events)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Go on after ``step``: cut later events off the log (see ``rewind_log``) and return the records that stay.

        Raises:
            OutputError: the log cannot be written.
        """
        if self._events is not None:  # its file is replaced
            self._events.close()
            self._events = None
        kept = rewind_log(self.path, step)
        self._open_log()
        return kept

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

        The events before it and every file are forced to disk, the manifest (SHA-256 and size of each file) is
        written last, the folder is renamed into place and that forced to disk, too. So a checkpoint is complete or
        absent however the process or the machine ends. One already there for that step is replaced. At the end it
        is read back.

        Raises:
            OutputError: the disk refuses; nothing is left behind.
            RunError: what is on the disk is not what was written.
        """
        final = self.checkpoint_folder(step)
        draft = new_folder(final.parent / f".{final.name}-{secrets.token_hex(4)}")
        old = draft.with_name(f"{draft.name}{_OLD}")
        try:
            yield draft
            self._sync_log()
            write_manifest(draft, step)
            if final.exists():
                rename(final, old)
            try:
                rename(draft, final)
            except OSError:
                if old.exists():
                    old.rename(final)
                raise
            sync_folder(final.parent)
        except OSError as error:
            raise output_error(final, error) from error
        finally:
            for leftover in (draft, old):
                if leftover.exists():
                    remove_folder(leftover)
        if reason := fault(final):
            what = f"The checkpoint that was written does not read back: {reason}."
            raise RunError(what, where=str(final), fix="Check the disk.")

    def remove_checkpoint(self, step: int) -> bool:
        """Remove a checkpoint and return whether the disk let it; a kill leaves it whole or gone.

        Its first act is a rename, so that no half checkpoint is ever found under its name.
        """
        final = self.checkpoint_folder(step)
        doomed = final.with_name(f".{final.name}-gone")
        try:
            rename(final, doomed)
        except OSError:
            return False
        remove_folder(doomed)
        return True

    def set_aside(self, checkpoint: Path) -> Path:
        """Rename a checkpoint that is not used, so that it is neither counted nor lost; return its new place.

        Raises:
            OutputError: the disk refuses.
        """
        place = checkpoint.with_name(f"set-aside-{checkpoint.name}-{secrets.token_hex(2)}")
        try:
            rename(checkpoint, place)
        except OSError as error:
            raise output_error(checkpoint, error) from error
        return place

    def discard_if_empty(self) -> None:
        """Close, and remove the folder if it was made now and has no sample and no checkpoint.

        So the same command can be given again once what stopped it is mended.
        """
        self.close()
        if not self.taken_up and not self.has_work():
            shutil.rmtree(self.path, ignore_errors=True)

    def has_work(self) -> bool:
        """Return whether there is a sample or a checkpoint."""
        return any((self.path / name).exists() for name in ("checkpoints", "samples"))

    def close(self) -> None:
        """Close the event file and release the lock."""
        if self._events is not None:
            with suppress(OSError):  # what a full disk refused is still in its buffer; append has told of it
                self._events.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_log(self) -> None:
        try:
            self._events = (self.path / LOG_FILE).open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise output_error(self.path / LOG_FILE, error) from error
        self._write_waiting(self._events)

    def _write_waiting(self, log: TextIO) -> None:
        lines, self._waiting = self._waiting, []
        try:
            about_to("write", self.path / LOG_FILE)
            log.write("".join(lines))
            log.flush()
        except OSError as error:
            raise output_error(self.path / LOG_FILE, error) from error

    def _sync_log(self) -> None:
        if self._events is not None:
            sync_file(self.path / LOG_FILE)


def _require_free(path: Path) -> None:
    try:
        taken = (path.exists() and not path.is_dir()) or (path.is_dir() and not _is_free(path))
    except OSError as error:
        raise output_error(path, error) from error
    if taken:
        fresh = Run.new_path(path.parent, path.name.rstrip("0123456789").rstrip("-") or path.name)
        raise RunError(
            "That folder already holds something; a run never overwrites another.",
            where=str(path),
            fix=f"Choose a new folder, such as --out {fresh}",
        )


def _is_free(folder: Path) -> bool:
    """Return whether there is nothing in a folder, or only what a run has left that was killed while it was made."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".tmp-")}
    return not names or (LOCK_FILE in names and names <= {LOCK_FILE, OWNER_FILE, RECIPE, LOG_FILE})


def _clear(path: Path) -> None:
    """Remove what a kill has left half done; a checkpoint that was being replaced gets its name back."""
    for draft in (path / "checkpoints").glob(".step-*"):
        final = draft.with_name(draft.name[1:].rpartition("-")[0].rpartition("-")[0])
        if draft.name.endswith(_OLD) and not final.exists():
            with suppress(OSError):
                rename(draft, final)
        else:
            remove_folder(draft)
    for folder in (path, *(path / "samples").glob("step-*")):
        for temporary in folder.glob(".tmp-*"):
            with suppress(OSError):
                temporary.unlink()
