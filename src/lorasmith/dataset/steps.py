"""The operations of a curation, one function each, in the order in which they are done to a picture.

A step looks at its work, changes ``picture`` and says so through ``Work.did``, or says why not through ``Work.left``.
A new operation is a new function in ``STEPS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from lorasmith.dataset.background import border_colour, compose, find, hex_of, make_behind
from lorasmith.dataset.contact import Change
from lorasmith.dataset.exposure import normalise
from lorasmith.dataset.inpaint import fill_holes
from lorasmith.dataset.ledger import Operation
from lorasmith.dataset.overlays import Line, TextRegion, find_lines, find_text
from lorasmith.dataset.picture import open_rgb
from lorasmith.dataset.plan import Choice, Plan
from lorasmith.dataset.shape import bucket_for, cut_to, enlargement, pad_to
from lorasmith.dataset.subject import Subject, parts_of, subject_of
from lorasmith.dataset.upright import as_stored, read_picture
from lorasmith.errors import DataError

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
_SEEN = frozenset(("alpha", "profile", "turned"))  # what of a reading changes how a picture looks
_PIECE = 0.03  # of the subject, for a piece of it to be told
_MOST_FILLED = 0.25  # of a picture; more than that is no longer the picture


class Excluded(Exception):  # noqa: N818 -- it ends a picture's way, and is no error
    """A picture is left out; the text is the reason."""


@dataclass
class Work:
    """A picture on its way through the steps.

    Args:
        label: the class and the name in it, for people.
        key: decides random choices, so that they are the same on every run.
        plan: what shall be done.
        choice: the same, for this picture.
        picture: uint8 RGB (height, width, 3).
        operations: what was done so far.
        changes: before and after of each, as ``record`` keeps them.
        record: what is kept of a change; None keeps nothing.
    """

    label: str
    key: str
    plan: Plan
    choice: Choice
    picture: Picture
    operations: list[Operation] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    record: Callable[[Change], Change] | None = None
    _subject: Subject | None = None

    def did(self, name: str, picture: Picture, how: dict[str, Any], *, boxes: Sequence[Box] = ()) -> None:
        """Take a changed picture, and note what changed it."""
        self.show(Change(name, self.label, self.picture, picture, tuple(boxes)))
        self.operations.append(Operation(name, True, how))
        self.picture = picture
        self._subject = None

    def show(self, change: Change) -> None:
        """Keep a change for the sheets, if there are any."""
        if self.record is not None:
            self.changes.append(self.record(change))

    def left(self, name: str, why: str, **how: Any) -> None:
        """Note why an operation was not done."""
        self.operations.append(Operation(name, False, {"why": why, **how}))

    @property
    def subject(self) -> Subject:
        """The subject of the picture as it now is; sought when it is first asked for."""
        if self._subject is None:
            self._subject = find(self.picture, self.plan.background.finder)
        return self._subject

    def keep_subject(self, mask: Mask, confidence: float) -> None:
        """Go on with a subject that was found before the picture was cut or moved."""
        self._subject = subject_of(mask, confidence=confidence)


def fill_named(work: Work) -> None:
    """Fill the boxes and the mask that the plan names for this picture."""
    choice = work.choice
    if not choice.boxes and choice.mask is None:
        return
    height, width = work.picture.shape[:2]
    holes = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in choice.boxes:
        if not (left < right <= width and top < bottom <= height):
            what = f"The box {[left, top, right, bottom]} of {work.label} is not inside its {width} x {height} pixels."
            raise DataError(what, fix="Write left, top, right, bottom in pixels, right and bottom excluded.")
        holes[top:bottom, left:right] = True
    if choice.mask is not None:
        mask = open_rgb(choice.mask)
        if mask.shape[:2] != (height, width):
            what = f"The mask of {work.label} has {mask.shape[1]} x {mask.shape[0]} pixels, not {width} x {height}."
            raise DataError(what, where=str(choice.mask), fix="Paint it on the upright picture at its full size.")
        holes |= mask.max(-1) > 127
    how: dict[str, Any] = {"boxes": [list(box) for box in choice.boxes]}
    if choice.mask is not None:
        how["mask"] = choice.mask.name
    _filled(work, "fill", holes, how)


def remove_lines(work: Work) -> None:
    """Remove thin straight lines that are sure to be strays."""
    if work.choice.lines:
        _removed(work, "lines", find_lines(work.picture))


def remove_text(work: Work) -> None:
    """Remove overlaid text that is sure to be such."""
    if work.choice.text:
        _removed(work, "text", find_text(work.picture))


def _removed(work: Work, name: str, found: Sequence[Line] | Sequence[TextRegion]) -> None:
    sure = [each for each in found if each.confidence >= work.plan.clean.sure]
    if not sure:
        if found:
            work.left(name, "not sure enough", confidence=round(max(each.confidence for each in found), 3))
        return
    holes = np.any([each.mask for each in sure], axis=0)
    places = [{"box": list(each.box), "confidence": round(each.confidence, 3)} for each in sure]
    _filled(work, name, holes, {"found": places})


def _filled(work: Work, name: str, holes: Mask, how: dict[str, Any]) -> None:
    share = float(holes.mean())
    if not share:
        return work.left(name, "nothing to fill", **how)
    if share > _MOST_FILLED:
        return work.left(name, f"more than {_MOST_FILLED:.0%} of the picture", share=round(share, 3), **how)
    picture, done = fill_holes(work.picture, holes, work.plan.clean.fill)
    boxes = [each.box for each in done]
    methods = sorted({each.method for each in done})
    work.did(name, picture, {**how, "pixels": int(holes.sum()), "filled_by": methods}, boxes=boxes)
    return None


def change_exposure(work: Work) -> None:
    """Bring the subject's tones to a common range."""
    if not work.choice.exposure:
        return
    subject = work.subject
    sure = subject.confidence >= work.plan.background.sure
    counted = subject.mask if sure else np.ones(work.picture.shape[:2], dtype=bool)
    picture, how = normalise(work.picture, counted, work.plan.exposure.strength)
    work.did("exposure", picture, {**how, "measured_on": "subject" if sure else "picture"})
    work.keep_subject(subject.mask, subject.confidence)


def crop_to_subject(work: Work) -> None:
    """Cut the picture to its subject, with a margin."""
    if not work.choice.crop:
        return
    subject = work.subject
    if subject.confidence < work.plan.background.sure:
        work.left("crop", "not sure of the subject", confidence=round(subject.confidence, 3))
        return
    left, top, right, bottom = subject.box
    margin = round(work.plan.crop.margin * max(right - left, bottom - top))
    height, width = work.picture.shape[:2]
    box = max(0, left - margin), max(0, top - margin), min(width, right + margin), min(height, bottom + margin)
    if box == (0, 0, width, height):
        work.left("crop", "the subject fills the picture")
        return
    part = np.s_[box[1] : box[3], box[0] : box[2]]
    how = {"box": list(box), "margin": margin, "confidence": round(subject.confidence, 3)}
    work.did("crop", np.ascontiguousarray(work.picture[part]), how, boxes=[box])
    work.keep_subject(subject.mask[part], subject.confidence)


def change_shape(work: Work) -> None:
    """Pad or crop the picture to the nearest aspect, and scale it to its bucket.

    Raises:
        Excluded: it is too small, and the plan says to leave such pictures out.
    """
    mode, section = work.choice.shape, work.plan.shape
    if mode == "keep":
        return
    height, width = work.picture.shape[:2]
    pad = mode == "pad"
    aspect, bucket = bucket_for(width, height, section.aspects, section.size, section.multiple, pad=pad)
    times = enlargement(width, height, bucket, pad=pad)
    if times > section.enlarge:
        if section.too_small == "exclude":
            what = f"{width} x {height} pixels would be enlarged {times:.2f} times to {bucket[0]} x {bucket[1]}"
            raise Excluded(f"{what}; the plan allows {section.enlarge:g}")
        shrink = section.enlarge / times
        bucket = (_cell(bucket[0] * shrink, section.multiple), _cell(bucket[1] * shrink, section.multiple))
        times = enlargement(width, height, bucket, pad=pad)
    how: dict[str, Any] = {"mode": mode, "aspect": aspect, "size": list(bucket), "scale": round(times, 4)}
    subject = work.subject
    sure = subject.confidence >= work.plan.background.sure
    shade = subject.mask.astype(np.uint8)[..., None].repeat(3, -1) * np.uint8(255)
    if pad:
        colour = border_colour(work.picture)
        how["colour"] = hex_of(colour)
        picture, mask = pad_to(work.picture, bucket, colour), pad_to(shade, bucket, (0, 0, 0))
    else:
        left, top, right, bottom = subject.box
        centre = ((left + right) / 2, (top + bottom) / 2) if sure else (width / 2, height / 2)
        how["centred_on"] = "subject" if sure else "middle"
        picture, mask = cut_to(work.picture, bucket, centre), cut_to(shade, bucket, centre)
    if picture.shape == work.picture.shape and np.array_equal(picture, work.picture):
        work.left("shape", "it has the shape already", aspect=aspect, size=list(bucket))
        return
    work.did("shape", picture, how)
    work.keep_subject(mask[..., 0] > 127, subject.confidence)


def _cell(side: float, multiple: int) -> int:
    return max(multiple, int(side) // multiple * multiple)


def change_background(work: Work) -> None:
    """Put something else behind the subject."""
    mode, section = work.choice.background, work.plan.background
    if mode == "keep":
        return
    subject = work.subject
    confidence = round(subject.confidence, 3)
    if subject.confidence < section.sure:
        work.left("background", "not sure of the subject", confidence=confidence)
        return
    if mode == "replace" and not section.pictures:
        what = f'{work.label} asks for the background "replace", but background.pictures names none.'
        raise DataError(what, fix='Add pictures = ["..."] under [background] in the plan.')
    behind = make_behind(section, mode, work.picture, subject.mask, work.key)
    picture = compose(work.picture, subject.mask, behind.picture)
    how = {"mode": mode, **behind.how, "finder": section.finder, "confidence": confidence}
    pieces = _pieces(subject.mask)
    work.did("background", picture, how | ({"pieces": pieces} if pieces > 1 else {}))
    work.keep_subject(subject.mask, subject.confidence)


def _pieces(mask: Mask) -> int:
    """Return how many separate pieces of a size that matters a mask has."""
    count, _, stats = parts_of(mask.astype(np.uint8))
    return int((stats[1:count, cv2.CC_STAT_AREA] > _PIECE * mask.sum()).sum())


STEPS: tuple[Callable[[Work], None], ...] = (
    fill_named,
    remove_lines,
    remove_text,
    change_exposure,
    crop_to_subject,
    change_shape,
    change_background,
)


def run_steps(path: Path, work: Work) -> None:
    """Read a picture and do everything that the plan says to it.

    Raises:
        PictureError: it cannot be read.
        Excluded: the plan leaves it out.
        DataError: what the plan says of it cannot be done.
    """
    work.picture, how = read_picture(path, work.plan.output.alpha)
    if how:
        work.operations.append(Operation("read", True, how))
        if work.record is not None and how.keys() & _SEEN:
            work.show(Change("read", work.label, as_stored(path), work.picture))
    for step in STEPS:
        step(work)


def mirrored(picture: Picture) -> Picture:
    """Return a picture with left and right exchanged."""
    return np.ascontiguousarray(cv2.flip(picture, 1))
