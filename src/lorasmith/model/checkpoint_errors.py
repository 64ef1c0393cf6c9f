"""How a checkpoint file is refused: in plain words, with the place, and never echoing what could fool a terminal."""

from __future__ import annotations

from lorasmith.errors import ModelError

DAMAGED_FIX = "Download or copy the file again, and compare its size and SHA-256."
_SHOWN = 120


def unsafe(what: str, where: str) -> ModelError:
    """Return the error for a file that asks for what weights never need."""
    return ModelError(
        f"{what} Nothing in the file was run.",
        where=where,
        fix="Do not open this file with other programs. Get the model's safetensors file, from its makers.",
    )


def damaged(what: str, where: str) -> ModelError:
    """Return the error for a file that is cut off, changed or malformed."""
    return ModelError(what, where=where, fix=DAMAGED_FIX)


def unsupported(what: str, where: str, fix: str = "Get the model as a safetensors file.") -> ModelError:
    """Return the error for a file that may be good, but is not of a kind that is read here."""
    return ModelError(what, where=where, fix=fix)


def shown(text: object) -> str:
    """Return a word from the file in a form fit for a message: short, ASCII, without control characters."""
    plain = ascii(text)[1:-1] if isinstance(text, str) else type(text).__name__
    return plain if len(plain) <= _SHOWN else f"{plain[: _SHOWN - 3]}..."
