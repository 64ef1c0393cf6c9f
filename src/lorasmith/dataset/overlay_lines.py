"""Find thin straight stray lines, without a model.

A stray line is thin, straight and long, stands out from both of its sides, which are alike, ends in nothing or at the
picture's border, and is not one of a family: joints of planks, stripes and courses of bricks come several at a time.
Candidates come from Hough's transform of thin ridges; each is then measured across its whole length.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorasmith.dataset.overlay_profile import HALF, peaks, promising, sampled, straight
from lorasmith.dataset.overlay_seeds import CONTRAST, Seed, line_seeds
from lorasmith.dataset.quantiles import median

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
_Float = npt.NDArray[np.float32]

_SHORTEST = 0.22  # of the longer side
_COVERED = 0.86  # of a line's length that has to stand out
_WIDEST = 6.5  # pixels; one of 3 pixels with soft edges measures up to 6
_GRAIN = 3.0  # of 255, what a camera's noise and JPEG add
_PURE, _IMPURE = 0.07, 0.12  # drawn lines lie below the one, shafts in photos above the other
_BESIDE = 9.0  # pixels from a line on which another one is one of its family


@dataclass(frozen=True)
class Segment:
    """A thin line in a picture.

    Args:
        start: x and y of one end, in pixels.
        end: x and y of the other.
        width: in pixels, at half its strength.
        contrast: how much it differs from its sides, as a distance in RGB.
        coverage: the share of its length on which it does.
        evenness: 1 where its sides are alike and its contrast is the same all along, towards 0 otherwise.
        shift: the difference from its sides, float32 RGB.
        impurity: how far its pixels are from one colour mixed with the sides in one share, as a share of the contrast.
        stray: it is thin all along and ends in nothing; otherwise it only counts as one of a family.
    """

    start: _Float
    end: _Float
    width: float
    contrast: float
    coverage: float
    evenness: float
    shift: _Float
    impurity: float
    stray: bool

    @property
    def length(self) -> float:
        return float(np.linalg.norm(self.end - self.start))


def find_segments(small: Picture, least: float) -> list[tuple[Segment, float]]:
    """Return thin straight lines in a picture of about 512 pixels, each with how sure it is that it is a stray.

    Where none is as sure as ``least``, none is returned, and time is saved.
    """
    seeds = line_seeds(small)
    if not _worth_following(small, seeds, least):
        return []
    segments: list[Segment] = []
    for seed in seeds:
        if not any(_within(seed, other) for other in segments) and (segment := _measured(small, *seed)):
            segments.append(segment)
    kept: list[Segment] = []
    for segment in sorted(segments, key=lambda s: (not s.stray, -s.length * s.coverage)):
        if not any(max(map(abs, _offsets(other, (segment.start, segment.end)))) < 5 for other in kept):
            kept.append(segment)
    return [(each, _confidence(each, segments, small.shape)) for each in kept if each.stray]


def _worth_following(small: Picture, seeds: list[Seed], least: float) -> bool:
    """Return whether any seed alone, whatever runs beside it, is a sure stray line; few pictures have one."""
    tried: list[Segment] = []
    for seed in itertools.compress(seeds, promising(small, seeds)):
        if any(_within(seed, other) for other in tried):
            continue
        if segment := _measured(small, *seed):
            if segment.stray and _sureness_alone(segment, small.shape) >= least:
                return True
            tried.append(segment)
    return False


def _profile(small: Picture, start: _Float, end: _Float) -> tuple[_Float, _Float, _Float]:
    """Return the colours across a segment, (steps, 17, 3), the points along it, and the unit normal."""
    along = end - start
    length = float(np.linalg.norm(along))
    normal = np.array([-along[1], along[0]], np.float32) / max(length, 1e-6)
    points = start + np.linspace(0, 1, max(8, int(length)), dtype=np.float32)[:, None] * along
    grid = points[:, None, :] + np.arange(-HALF, HALF + 1, dtype=np.float32)[None, :, None] * normal
    return sampled(small, grid), points, normal


def _measured(small: Picture, start: _Float, end: _Float) -> Segment | None:
    """Centre a segment on its line, follow it to both ends, and measure it; None if nothing stands out there."""
    for _ in range(2):
        start, end = _centred(small, start, end)
    far = _through(start, end, small.shape[1], small.shape[0])
    if far is None:
        return None
    colours, points, _ = _profile(small, *far)
    inner = _between(points, start, end)
    if inner.sum() < 8:
        return None
    sides = (colours[:, 2:5].mean(1) + colours[:, 12:15].mean(1)) / 2
    contrast = colours[:, 7:10].mean(1) - sides
    typical = median(contrast[inner], 0)
    strength = float(np.linalg.norm(typical))
    if strength < CONTRAST / 2:
        return None
    agree = (contrast @ typical) / strength
    stands = (agree > 0.45 * strength) | _crossing(colours, inner, strength)
    first, last = _run(stands, inner)
    if last - first < 8:
        return None
    part, here = colours[first:last], stands[first:last]
    wide = _width(part, typical)
    unlike = float(np.abs(part[:, 2:5].mean(1) - part[:, 12:15].mean(1)).mean())
    spread = float(np.median(np.abs(agree[first:last][here] - strength))) / strength
    evenness = (1 - min(1.0, spread)) / (1 + unlike / strength)
    stray = wide <= _WIDEST and abs(_centre(part)) < 2 and _ends_freely(colours, sides, first, last, strength)
    impurity = _impurity(part[:, HALF], sides[first:last], strength)
    cover = float(here.mean())
    return Segment(points[first], points[last - 1], wide, strength, cover, evenness, typical, impurity, stray)


def _centred(small: Picture, start: _Float, end: _Float) -> Seed:
    """Move a segment onto its line: a straight line through the centres of its pieces, whatever a few of them say."""
    colours, _, normal = _profile(small, start, end)
    pieces = np.array_split(np.arange(len(colours)), max(2, len(colours) // 16))
    place = np.array([piece.mean() / (len(colours) - 1) for piece in pieces])
    shift = _centres(colours, len(pieces))
    slope, base = (float(each[0, 0]) for each in straight(place, shift[None]))
    return (start + normal * base).astype(np.float32), (end + normal * (base + slope)).astype(np.float32)


def _centres(colours: _Float, count: int) -> _Float:
    """Return where a line's centre lies in each of ``count`` pieces of its profile, cut as numpy.array_split cuts."""
    size, more = divmod(len(colours), count)
    cut = more * (size + 1)
    parts = [colours[:cut].reshape(more, size + 1, *colours.shape[1:])] if more else []
    parts.append(colours[cut:].reshape(count - more, size, *colours.shape[1:]))
    return peaks(np.concatenate([median(part, 1) for part in parts]))


def _centre(part: _Float) -> float:
    """Return how far a line lies from the middle of its profile, in parts of a pixel."""
    return float(peaks(median(part, 0)[None])[0])


def _width(part: _Float, typical: _Float) -> float:
    """Return the width of a line at half its strength, in pixels."""
    outside = median(np.concatenate([part[:, :4], part[:, 13:]], axis=1).reshape(-1, 3), 0)
    across = (median(part, 0) - outside) @ typical / max(float(np.linalg.norm(typical)), 1e-6)
    return float((across[3:14] > across[6:11].max() / 2).sum())


def _impurity(middle: _Float, sides: _Float, strength: float) -> float:
    """Return how badly a line's colours are told by one colour laid over its sides in one share.

    What was drawn over a picture is c = (1 - a) side + a colour with the same a and colour all along; a shaft has
    its own light and shade.
    """
    x, y = sides - np.median(sides, axis=0), middle - np.median(middle, axis=0)
    share = float(np.clip((x * y).sum() / max(float((x * x).sum()), 1.0), 0, 0.8))
    off = float(np.percentile(np.linalg.norm(y - share * x, axis=1), 80))
    return max(0.0, off - _GRAIN) / strength


def _crossing(colours: _Float, inner: Mask, strength: float) -> Mask:
    """Return where a line of one colour lies across something else, such as the subject.

    It differs from both sides there, to the same direction, and has the colour that it has everywhere.
    """
    middle = colours[:, 7:10].mean(1)
    own = np.median(middle[inner], axis=0)
    left, right = middle - colours[:, 2:5].mean(1), middle - colours[:, 12:15].mean(1)
    differs = np.minimum(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)) > 0.3 * strength
    alike = np.linalg.norm(middle - own, axis=1) < 0.35 * strength
    return np.asarray(differs & alike & ((left * right).sum(1) > 0))


def _ends_freely(colours: _Float, sides: _Float, first: int, last: int, strength: float) -> bool:
    """Return whether the sides go on beyond both ends much as they did along it.

    A shaft ends in a head, a stray line in nothing; on tiles or grass the sides change all along.
    """
    count = max(0, last - first - 12)
    usual = np.linalg.norm(sides[first + 12 : first + 12 + count] - sides[first : first + count], axis=1)
    most = max(10.0, 0.35 * strength, 1.1 * float(np.percentile(usual, 85)) if len(usual) else 0.0)
    around = np.concatenate([colours[:, 1:5], colours[:, 12:16]], axis=1)
    ends = (
        (around[max(0, last - 14) : max(0, last - 4)], around[last + 3 : last + 11]),
        (around[first + 4 : first + 14], around[max(0, first - 11) : max(0, first - 3)]),
    )
    jumps = [
        float(np.linalg.norm(np.median(here, axis=(0, 1)) - np.median(beyond, axis=(0, 1))))
        for here, beyond in ends
        if len(here) >= 5 and len(beyond) >= 5  # otherwise it ends at the picture's border
    ]
    return max(jumps, default=0.0) <= most


def _between(points: _Float, start: _Float, end: _Float) -> Mask:
    along = end - start
    place = ((points - start) @ along) / max(float(along @ along), 1e-6)
    return np.asarray((place >= 0) & (place <= 1), dtype=bool)


def _run(stands: Mask, inner: Mask) -> tuple[int, int]:
    """Return the longest stretch round ``inner`` in which nearly every step stands out."""
    gap = max(6, len(stands) // 40)
    inside = np.flatnonzero(inner)
    first, last = int(inside[0]), int(inside[-1]) + 1
    while first > 0 and stands[max(0, first - gap) : first].mean() > 0.5:
        first -= 1
    while last < len(stands) and stands[last : last + gap].mean() > 0.5:
        last += 1
    on = np.flatnonzero(stands[first:last])
    return (first + int(on[0]), first + int(on[-1]) + 1) if len(on) else (0, 0)


def _through(start: _Float, end: _Float, width: int, height: int) -> Seed | None:
    """Return where the line through two points enters and leaves a picture; None if it does not."""
    along = end - start
    length = float(np.linalg.norm(along))
    if length < 1e-3:
        return None
    along = along / length
    low, high = -np.inf, np.inf
    for place, step, side in zip(start, along, (width - 1, height - 1)):
        if abs(step) < 1e-6:
            if not 0 <= place <= side:
                return None
            continue
        near, far = sorted(((0 - place) / step, (side - place) / step))
        low, high = max(low, near), min(high, far)
    if high - low < 8:
        return None
    return (start + along * low).astype(np.float32), (start + along * high).astype(np.float32)


def _offsets(segment: Segment, points: tuple[_Float, ...]) -> list[float]:
    """Return how far points lie from the line through a segment, in pixels, with a sign for the side."""
    along = (segment.end - segment.start) / max(segment.length, 1e-6)
    away = [point - segment.start for point in points]
    return [float(along[0] * each[1] - along[1] * each[0]) for each in away]


def _within(seed: Seed, segment: Segment) -> bool:
    """Return whether a seed says nothing that a segment does not say."""
    if max(map(abs, _offsets(segment, seed))) > 4:
        return False
    along = (segment.end - segment.start) / max(segment.length, 1e-6)
    places = [float((point - segment.start) @ along) for point in seed]
    return min(places) > -10 and max(places) < segment.length + 10


def _has_family(segment: Segment, others: list[Segment]) -> bool:
    """Return whether like lines run beside a segment: joints and stripes come several at a time."""
    for other in others:
        offsets = _offsets(segment, (other.start, other.end))
        level = abs(offsets[0] - offsets[1]) < 0.06 * other.length and min(map(abs, offsets)) > _BESIDE
        alike = float(segment.shift @ other.shift) > 0.7 * segment.contrast * other.contrast
        if level and alike and 0.4 < other.contrast / segment.contrast < 2.5:
            return True
    return False


def _confidence(segment: Segment, others: list[Segment], shape: tuple[int, ...]) -> float:
    alone = _sureness_alone(segment, shape)
    return 0.0 if alone == 0 or _has_family(segment, others) else alone


def _sureness_alone(segment: Segment, shape: tuple[int, ...]) -> float:
    """Return how sure it is that a segment is a stray line if no like ones run beside it."""
    length = segment.length / max(shape[:2])
    if length < _SHORTEST or segment.coverage < _COVERED or segment.contrast < CONTRAST:
        return 0.0
    clear = min(1.0, segment.contrast / 30) ** 0.3 * min(1.0, (segment.coverage - 0.6) / 0.35)
    pure = float(np.clip((_IMPURE - segment.impurity) / (_IMPURE - _PURE), 0, 1))
    return float(np.clip(min(1.0, length / 0.4) ** 0.5 * clear * segment.evenness**0.7 * pure, 0, 1))
