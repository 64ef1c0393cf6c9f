"""What to type to go on with a run. Standard library only, so that a list of runs is there at once."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path


def resume_command(run: Path) -> str:
    """Return the command that goes on with a run, as the system's shell wants it."""
    words = ["lorasmith", "train", "--resume", str(run)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
