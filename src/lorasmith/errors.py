"""Every error that lorasmith raises on purpose.

    LorasmithError
    ├── RecipeError      the recipe, or an option on the command line
    ├── DataError        the pictures, captions or metadata
    ├── ModelError       the base model, its files, or what it cannot do
    ├── LoraError        a LoRA file, or a LoRA that does not fit its base
    ├── DeviceError      the GPU, its driver, or memory
    ├── OutputError      a file or folder that cannot be written
    └── RunError         a run folder: already there, unfinished, or damaged

The command line prints them as plain text and exits with code 2; it never shows a traceback for one.
"""

from __future__ import annotations


class LorasmithError(Exception):
    """Something a user can understand and mend.

    Args:
        what: what happened, as one sentence.
        where: the file, line or key it happened in, if there is one.
        fix: what to do about it, as one sentence.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  to do: {self.fix}")
        return "\n".join(lines)


class RecipeError(LorasmithError):
    """The recipe, or an option on the command line, says something that cannot be done."""


class DataError(LorasmithError):
    """The pictures, captions or metadata cannot be used."""


class ModelError(LorasmithError):
    """The base model cannot be found, read or used."""


class LoraError(LorasmithError):
    """A LoRA file cannot be read, or does not fit its base."""


class DeviceError(LorasmithError):
    """The GPU, its driver or its memory is not what the work needs."""


class OutputError(LorasmithError):
    """A file or folder cannot be written."""


class RunError(LorasmithError):
    """A run folder is in the way, unfinished or damaged."""
