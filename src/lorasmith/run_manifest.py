"""Checkpoints in a run folder: each is complete or does not exist.

A checkpoint is a folder, checkpoints/step-000400, whose manifest.json names its other files with size and SHA-256.
The manifest is written last, so one that is there and true means that everything else is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lorasmith import __version__
from lorasmith.files import sha256_file, sync_file, sync_folder, write_json

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")
_LIMIT = 1 << 20  # bytes of a manifest


@dataclass(frozen=True)
class PassedOver:
    """A checkpoint that is not used, and why."""

    path: Path
    reason: str


def write_manifest(draft: Path, step: int) -> None:
    """Force the files in ``draft`` to disk and write their manifest.

    Raises:
        OSError, OutputError: the disk refuses.
    """
    entries = {}
    for path in sorted(p for p in draft.rglob("*") if p.is_file()):
        sync_file(path)
        entries[path.relative_to(draft).as_posix()] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    sync_folder(draft)
    write_json(draft / MANIFEST, {"step": step, "lorasmith": __version__, "files": entries})


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step in a checkpoint's name, or -1 where the name is no checkpoint's."""
    found = _NAME.fullmatch(checkpoint.name)
    return int(found.group(1)) if found else -1


def fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, every byte read, or None."""
    try:
        files = _read(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"it has no readable {MANIFEST}, so it was never finished"
    for name, entry in files.items():
        try:
            size = (checkpoint / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size:,} bytes instead of {entry['bytes']:,}"
            if sha256_file(checkpoint / name) != entry["sha256"]:
                return f"{name} is damaged: its SHA-256 is not the manifest's"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def complete_checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run folder, oldest first; none where ``run`` is not one.

    Only sizes are compared; ``newest_valid`` reads every byte.
    """
    return [path for path in _candidates(run) if _is_complete(path)]


def newest_valid(run: Path, fault_of: Callable[[Path], str | None] = fault) -> tuple[Path | None, list[PassedOver]]:
    """Return a run folder's newest checkpoint without a fault, and the newer ones that have one.

    Args:
        fault_of: says what is wrong with a checkpoint, or None.
    """
    passed: list[PassedOver] = []
    for path in reversed(_candidates(run)):
        reason = fault_of(path)
        if reason is None:
            return path, passed
        passed.append(PassedOver(path, reason))
    return None, passed


def superseded(steps: Sequence[int], best: int | None, keep_last: int, keep_every: int | None) -> list[int]:
    """Return which of the checkpoints at ``steps`` are no longer kept.

    Args:
        best: the step of the best one, which stays.
        keep_last: how many of the newest stay.
        keep_every: those whose step is a multiple of it stay.
    """
    stay = {*sorted(steps)[-keep_last:], best}
    return [step for step in sorted(steps) if step not in stay and not (keep_every and step % keep_every == 0)]


def _candidates(run: Path) -> list[Path]:
    return sorted((p for p in (run / "checkpoints").glob("step-*") if step_of(p) >= 0), key=step_of)


def _is_complete(checkpoint: Path) -> bool:
    try:
        return all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in _read(checkpoint).items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _read(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's files, with names that stay inside the checkpoint and entries of the right form."""
    path = checkpoint / MANIFEST
    if path.stat().st_size > _LIMIT:
        raise ValueError("too large for a manifest")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            raise ValueError("a name that leads out of the checkpoint")
        if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
            raise TypeError("an entry of another form")
    if manifest["step"] != step_of(checkpoint) or not files:
        raise ValueError("the manifest of something else")
    return files
