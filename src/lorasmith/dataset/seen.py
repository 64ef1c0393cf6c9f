"""All that ``check`` knows of a picture after one look, fit to be kept in a cache."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from lorasmith.dataset import measures as measuring
from lorasmith.dataset.look import look
from lorasmith.dataset.measures import Measures, measure
from lorasmith.dataset.overlays import Line, find_lines, find_text, reduced
from lorasmith.dataset.picture import Picture, PictureInfo, fraction
from lorasmith.dataset.subject import Mask, Subject, find_subject, parts_of

VERSION = (9, measuring.VERSION)  # of what is kept; anything of another version is made again
_THUMBNAIL = 160  # pixels of the longer side
_PART = 0.4  # of the largest part's area, from which on another part of the subject is a thing of its own
_LIKELY = 0.5  # of sureness, below which lines and text are not worth keeping
_SOMEWHERE = 0.5  # of sureness, that the mask is about where the subject is
_THICK = 0.04  # of the shorter side; thinner parts of a subject may look like lines
_PROPORTION = 1.6  # times that its length and its width may differ from the largest part's
_FURTHER_IN = 0.04  # of a side
_TIP = 0.5  # of the thickness there
_EDGE = 2  # pixels of the mask's rim that count as touching the frame

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the width and height


@dataclass(frozen=True)
class Spot:
    """Something found at a place in the picture."""

    box: Box
    confidence: float


@dataclass(frozen=True)
class Seen:
    """What is known of a picture.

    Args:
        info: what its file says.
        orientation: EXIF's number; 1 is upright.
        bits: for each value.
        transparent: the share of pixels that are not opaque; None where the file has no transparency.
        profile: see ``Look``.
        working: the shorter side that was measured at, in pixels.
        measures: what was measured.
        subject: where it is; the box is all 0 if none was found.
        subjects: how many separate things of about the same size the subject is.
        cut: the share of the left, top, right and bottom side that the subject touches.
        texts: what looks like overlaid text.
        lines: stray straight lines.
        thumbnail: JPEG.
    """

    info: PictureInfo
    orientation: int
    bits: int
    transparent: float | None
    profile: str
    working: int
    measures: Measures
    subject: Spot
    subjects: int
    cut: Box
    texts: tuple[Spot, ...]
    lines: tuple[Spot, ...]
    thumbnail: bytes

    def to_json(self) -> dict[str, Any]:
        """Return all but the thumbnail as JSON-ready values; ``from_json`` reads them."""
        record = {name: value for name, value in vars(self).items() if name != "thumbnail"}
        record["info"], record["subject"] = vars(self.info), vars(self.subject)
        for name in ("texts", "lines"):
            record[name] = [vars(spot) for spot in record[name]]
        record["measures"] = {name: _packed(value) for name, value in vars(self.measures).items()}
        return record


def see(path: Path) -> Seen:
    """Look at a picture, measure it, and look for what does not belong there.

    Raises:
        PictureError: it cannot be used.
    """
    seen = look(path)
    picture = seen.picture
    small, _ = reduced(picture)
    height, width = small.shape[:2]
    subject = find_subject(small, fast=True)

    def spot(found: Any) -> Spot:
        left, top, right, bottom = found.box
        return Spot((left / width, top / height, right / width, bottom / height), float(found.confidence))

    return Seen(
        seen.info,
        seen.orientation,
        seen.bits,
        seen.transparent,
        seen.profile,
        min(picture.shape[:2]),
        measure(picture),
        spot(subject),
        _things(subject),
        _touching(subject),
        tuple(spot(text) for text in find_text(small, _LIKELY) if not _on_subject(text.mask, subject)),
        tuple(spot(line) for line in find_lines(small, _LIKELY) if not _belongs(line, subject)),
        thumbnail(small),
    )


def from_json(record: dict[str, Any], thumbnail: bytes) -> Seen:
    """Return what ``Seen.to_json`` wrote.

    Raises:
        KeyError, TypeError, ValueError: it did not write this.
    """
    values = dict(record)
    values["info"] = PictureInfo(**values["info"])
    values["measures"] = Measures(**{name: _unpacked(value) for name, value in values["measures"].items()})
    values["subject"] = _spot(values["subject"])
    values["cut"] = tuple(values["cut"])
    for name in ("texts", "lines"):
        values[name] = tuple(_spot(value) for value in values[name])
    values["thumbnail"] = thumbnail
    return Seen(**values)


def thumbnail(picture: Picture) -> bytes:
    """Return a picture as a small JPEG.

    Args:
        picture: uint8 RGB of shape (height, width, 3).
    """
    height, width = picture.shape[:2]
    scale = min(1.0, _THUMBNAIL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    nearly = fraction(picture, 2) if scale <= 0.5 else picture
    stream = io.BytesIO()
    Image.fromarray(cv2.resize(nearly, size, interpolation=cv2.INTER_AREA)).save(stream, "JPEG", quality=70)
    return stream.getvalue()


def _things(subject: Subject) -> int:
    """Return how many separate parts of a subject have about the size and proportions of the largest.

    A hammer whose head and handle come apart in the mask is one thing; two hammers side by side are two.
    """
    coarse = np.ascontiguousarray(subject.mask[::2, ::2])
    count, labels, stats = parts_of(coarse.view(np.uint8))
    if count < 2:
        return 0
    areas = stats[1:count, cv2.CC_STAT_AREA]
    candidates = np.flatnonzero(areas >= _PART * areas.max())
    boxes = [sorted(cv2.minAreaRect(_outline(labels == i + 1))[1]) for i in candidates.tolist()]
    short, long = boxes[int(areas[candidates].argmax())]
    return sum(
        1 / _PROPORTION <= (one[0] + 1) / (short + 1) <= _PROPORTION
        and 1 / _PROPORTION <= (one[1] + 1) / (long + 1) <= _PROPORTION
        for one in boxes
    )


def _outline(part: Mask) -> npt.NDArray[np.int32]:
    """Return the points along the outer edge of a connected part, int32 (n, 1, 2)."""
    contours, _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(contours[0], dtype=np.int32)


def _on_subject(mask: Mask, subject: Subject) -> bool:
    """Return whether something lies mostly on the subject, where engravings and rivets look like letters."""
    return subject.confidence >= _SOMEWHERE and bool((mask & subject.mask).sum() > 0.5 * mask.sum())


def _belongs(line: Line, subject: Subject) -> bool:
    """Return whether a line is a part of the subject, as a thin handle is: it ends at a thick part of it."""
    if subject.confidence < 0.5 or (line.mask & subject.mask).sum() <= 0.5 * line.mask.sum():
        return False
    height, width = subject.mask.shape
    size = max(3, round(min(height, width) * _THICK))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    thick = cv2.morphologyEx(subject.mask.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    near = cv2.dilate(thick, kernel, iterations=2)
    ends = ((min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)) for x, y in line.ends)
    return any(near[end] for end in ends)


def _touching(subject: Subject) -> Box:
    """Return the share of the left, top, right and bottom side along which the subject runs out of the picture.

    A tip that just touches the frame grows much thicker further in, which what is cut does not; it counts as 0.
    """
    shares = []
    for mask in (subject.mask.T, subject.mask, subject.mask.T[::-1], subject.mask[::-1]):
        edge = mask[:_EDGE].all(axis=0).mean()
        inner = mask[min(len(mask) - 1, max(_EDGE, round(len(mask) * _FURTHER_IN)))].mean()
        shares.append(float(edge) if edge >= _TIP * inner else 0.0)
    left, top, right, bottom = shares
    return left, top, right, bottom


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": data}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if value["dtype"] not in ("uint8", "float32"):
            raise ValueError(value["dtype"])
        array = np.frombuffer(base64.b64decode(value["data"]), dtype=value["dtype"])
        return array.reshape(value["shape"])
    return tuple(value) if isinstance(value, list) else value


def _spot(value: dict[str, Any]) -> Spot:
    left, top, right, bottom = value["box"]
    return Spot((left, top, right, bottom), value["confidence"])
