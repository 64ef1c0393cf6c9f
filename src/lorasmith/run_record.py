"""What a run folder records of itself: its recipe, and with what it was made."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from lorasmith import __version__
from lorasmith.errors import RunError

RECIPE, PROVENANCE = "recipe.toml", "provenance.json"
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "Pillow")


def is_run(path: Path) -> bool:
    """Return whether a folder is a run's."""
    return (path / RECIPE).is_file() and (path / PROVENANCE).is_file()


def circumstances() -> dict[str, Any]:
    """Return what a run is made with: the time, the command, versions and the machine."""
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


def read_provenance(path: Path) -> dict[str, Any]:
    """Return what is recorded in a run's provenance.json.

    Raises:
        RunError: it cannot be read.
    """
    try:
        found = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise RunError(
            "The run's provenance cannot be read, so nobody knows what it was made with.",
            where=str(path / PROVENANCE),
            fix="Put the file back from a copy, or train anew with the run's recipe.toml.",
        )
    return found
