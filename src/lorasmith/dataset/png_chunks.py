"""Whether a PNG file is whole, told from its chunks without decoding it (PNG, third edition, section 5)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_SIGNATURE = 8
_AT_ONCE = 1 << 20


def png_damage(path: Path) -> str:
    """Return what is wrong with a PNG file's critical chunks in words, or "".

    Decoders find that out too, but only after all pixels before it, and Pillow does not look at the pixels' checksums.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(_SIGNATURE)
        while True:
            head = file.read(8)
            if len(head) < 8:
                return "it is cut short"
            left, name = struct.unpack(">I4s", head)
            critical = not name[0] & 32
            summed = zlib.crc32(name)
            if not critical:
                file.seek(left + 4, 1)
                continue
            while left:
                block = file.read(min(left, _AT_ONCE))
                if not block:
                    return "it is cut short"
                summed, left = zlib.crc32(block, summed), left - len(block)
            if file.read(4) != summed.to_bytes(4, "big"):
                return "a checksum in it is wrong"
            if name == b"IEND":
                return ""
