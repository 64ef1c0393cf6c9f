"""From what was seen of a picture, or measured of all of them, to findings in words."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasmith.dataset import duplicates
from lorasmith.dataset.contents import Listed
from lorasmith.dataset.finding import Finding, finding, shown
from lorasmith.dataset.measures import Measures
from lorasmith.dataset.metadata import is_device_name
from lorasmith.dataset.read import Example
from lorasmith.dataset.seen import Seen
from lorasmith.dataset.variety import PLAIN_SHARE, Variety

ENLARGED = 1.25  # from which on a picture is too small
LONG = 2.0  # times as long as wide
SOFT = 2.0  # pixels at the training's resolution
WHITE = 0.2  # of the subject
DARK = 60.0  # levels that 98 % of the subject stays under
BAR = 0.01  # of a side
SURE = 0.5  # of what finds lines and subjects
TEXT_SURE = 0.8  # of what finds text; ornaments reach more than half
CUT = 0.02  # of a side
UNBALANCED = 3.0
FEW = 10
_NAMES_SHOWN = 4
_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".mpo"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pnm"),
    "JPEG2000": (".jp2",),
    "TGA": (".tga",),
}
_ILLEGAL = frozenset('<>:"|?*\\')


@dataclass(frozen=True)
class Usable:
    """A picture that is used, its example, and the small part of what was seen that comparing needs."""

    listed: Listed
    example: Example
    measures: Measures


def judge_file(listed: Listed, seen: Seen) -> Iterator[Finding]:
    """Yield what there is to say about a picture's file."""
    name, path, info = listed.name, listed.path, seen.info
    if path.suffix.lower() not in _SUFFIXES.get(info.format, (path.suffix.lower(),)):
        kind = "JPEG" if info.format == "MPO" else info.format
        what = f"{name} is a {kind} file and not what its suffix {shown(path.suffix)} says."
        yield finding("wrong-suffix", what, path)
    if seen.transparent:
        yield finding("alpha-used", f"{_percent(seen.transparent)} of {name} is not opaque.", path)
    elif seen.transparent is not None:
        yield finding("alpha-unused", f"{name} has an alpha channel that is opaque everywhere ({info.mode}).", path)
    if seen.bits > 8:
        yield finding("deep-colour", f"{name} has {seen.bits} bits for each value.", path)
    if info.mode == "CMYK":
        yield finding("cmyk", f"{name} is in printing colours (CMYK).", path)
    if seen.measures.grey:
        yield finding("grey", f"{name} has no colour.", path)
    if seen.profile == "damaged":
        yield finding("bad-profile", f"{name} has a colour profile that cannot be applied.", path)
    elif seen.profile:
        yield finding("colour-profile", f'{name} has the colour profile "{seen.profile}".', path)
    if seen.orientation not in (0, 1):
        yield finding("rotated", f"{name} is turned or mirrored by its EXIF (orientation {seen.orientation}).", path)


def judge_name(listed: Listed) -> Iterator[Finding]:
    """Yield what there is to say about a picture's name."""
    for part in listed.path.relative_to(listed.folder.path).parts:
        if bad := _bad_name(part):
            yield finding("file-name", f"{listed.name} {bad}.", listed.path)
            return


def _bad_name(part: str) -> str:
    if is_device_name(part):
        return "has a name that Windows keeps for a device"
    if bad := sorted({c for c in part if c in _ILLEGAL or ord(c) < 32}):
        return f"has {' '.join(shown(c) for c in bad)} in its name, which Windows does not allow"
    if part.endswith((" ", ".")):
        return "has a name that ends in a space or a dot, which Windows drops"
    if any(0xD800 <= ord(c) <= 0xDFFF for c in part):
        return "has a name that is not Unicode text"
    return ""


def judge_look(listed: Listed, seen: Seen, resolution: int) -> Iterator[Finding]:
    """Yield what there is to say about what a picture shows, for a training at ``resolution`` pixels."""
    name, path, info, measures = listed.name, listed.path, seen.info, seen.measures
    short, long = sorted((info.width, info.height))
    size = f"{info.width} x {info.height} px"
    enlarged = resolution / short
    if enlarged > 1:
        code = "too-small" if enlarged >= ENLARGED else "slightly-small"
        yield finding(code, f"{name} has {size}, so it is enlarged {enlarged:.2f} times for {resolution} px.", path)
    if long > LONG * short:
        what = f"{name} has {size}: a square keeps {_percent(short / long)} of it."
        yield finding("extreme-aspect", what, path)
    soft = measures.softness * min(resolution, short) / seen.working
    if not math.isnan(soft) and soft > SOFT:
        what = f"{name} is blurred: its sharpest edges are {2 * soft:.1f} px wide at {resolution} px."
        yield finding("blurred", what, path)
    if measures.white_share > WHITE:
        what = f"{_percent(measures.white_share)} of what {name} shows, plain background aside, is pure white."
        yield finding("over-exposed", what, path)
    if measures.brightest < DARK:
        what = f"What {name} shows is almost black: 98 % of it is darker than {measures.brightest:.0f} of 255."
        yield finding("under-exposed", what, path)
    if max(measures.bars) >= BAR:
        sides = zip(("left", "top", "right", "bottom"), measures.bars)
        where = ", ".join(f"{side} {_percent(share)}" for side, share in sides if share >= BAR)
        yield finding("borders", f"{name} has bars of one colour: {where}.", path)
    yield from _judge_overlays(listed, seen)
    yield from _judge_subject(listed, seen)


def _judge_overlays(listed: Listed, seen: Seen) -> Iterator[Finding]:
    texts = [spot for spot in seen.texts if spot.confidence >= TEXT_SURE]
    lines = [spot for spot in seen.lines if spot.confidence >= SURE]
    if texts:
        where = _place(texts[0].box)
        what = f"{listed.name} seems to have a watermark or text, {where} (sureness {texts[0].confidence:.2f})."
        yield finding("text", what, listed.path)
    if lines:
        count = "a stray straight line" if len(lines) == 1 else f"{len(lines)} stray straight lines"
        what = f"{listed.name} seems to have {count}, {_place(lines[0].box)} (sureness {lines[0].confidence:.2f})."
        yield finding("lines", what, listed.path)


def _judge_subject(listed: Listed, seen: Seen) -> Iterator[Finding]:
    if seen.subject.confidence < SURE:
        return
    if seen.subjects > 1:
        what = f"{listed.name} seems to show {seen.subjects} separate things of about the same size and shape."
        yield finding("several-subjects", what, listed.path)
    sides = [side for side, share in zip(("left", "top", "right", "bottom"), seen.cut) if share >= CUT]
    if sides and len(sides) < 4:
        what = f"What {listed.name} shows runs out of the picture: {', '.join(sides)}."
        yield finding("cut-by-frame", what, listed.path)


def judge_together(usable: Sequence[Usable], held_out: frozenset[str], holds_out: bool) -> Iterator[Finding]:
    """Yield which pictures are nearly the same.

    Args:
        usable: the pictures.
        held_out: content hashes of those that are held out to measure on.
        holds_out: whether any are.
    """
    names = [u.listed.name for u in usable]
    paths = [u.listed.path for u in usable]
    hashes = [u.measures.hash for u in usable]
    for group in duplicates.groups(hashes):
        members = ", ".join(names[i] for i in group[:_NAMES_SHOWN])
        more = f" and {len(group) - _NAMES_SHOWN} more" if len(group) > _NAMES_SHOWN else ""
        related = [paths[i] for i in group[1:]]
        if len({usable[i].example.sha256 for i in group}) > 1:  # else they are listed as equal files
            what = f"{len(group)} pictures are nearly the same: {members}{more}."
            yield finding("near-duplicates", what, paths[group[0]], related=related)
        held = [i for i in group if usable[i].example.sha256 in held_out]
        if holds_out and held and len(held) < len(group):
            trained = next(i for i in group if i not in held)
            what = f"{names[held[0]]} is held out to measure on, but {names[trained]}, nearly the same, is trained on."
            yield finding("held-out-duplicates", what, paths[held[0]], related=[paths[trained]])
    for a, b in duplicates.mirrored(hashes):
        what = f"{names[b]} is the mirror image of {names[a]}."
        yield finding("mirrored-duplicates", what, paths[b], related=[paths[a]])


def judge_names_together(listed: Sequence[Listed]) -> Iterator[Finding]:
    """Yield the files whose names differ only by capitals, or by how an accent is written."""
    groups: dict[tuple[Path, str], list[Listed]] = defaultdict(list)
    for each in listed:
        folded = unicodedata.normalize("NFC", each.path.name).casefold()
        groups[each.path.parent, folded].append(each)
    for group in groups.values():
        if len(group) > 1:
            names = " and ".join(each.name for each in group)
            paths = [each.path for each in group]
            yield finding("case-clash", f"{names} differ only by capitals.", paths[0], related=paths[1:])


def judge_classes(usable: Sequence[Usable], varieties: Mapping[str, Variety]) -> Iterator[Finding]:
    """Yield what there is to say about the classes: how many pictures they have and how these differ."""
    members: dict[str, list[Usable]] = defaultdict(list)
    for each in usable:
        members[each.example.label].append(each)
    counts = Counter({label: len(group) for label, group in members.items()})
    if len(counts) > 1:
        (large, most), (small, least) = counts.most_common(1)[0], counts.most_common()[-1]
        if most > UNBALANCED * least:
            what = f"{shown(large)} has {most} pictures and {shown(small)} {least}, {most / least:.1f} times fewer."
            yield finding("class-balance", what, members[small][0].listed.folder.path)
    for label, group in members.items():
        folder = group[0].listed.folder.path
        if len(group) < FEW:
            count = f"{len(group)} picture{'' if len(group) == 1 else 's'}"
            yield finding("too-few", f"{shown(label)} has only {count}.", folder)
        if (varied := varieties.get(label)) is None:
            continue
        for aspect in varied.low:
            alike = [group[i].listed.path for i in varied.most_alike[aspect]]
            what = (
                f"The {len(group)} pictures of {shown(label)} hardly differ in {aspect}: variety "
                f"{varied.figures[aspect]:.2f} of 1, as of {varied.kinds[aspect]:.1f} kinds. The most alike are "
                f"{', '.join(shown(path.name) for path in alike)}."
            )
            yield finding("low-variety", what, folder, related=alike)
        if varied.plain >= PLAIN_SHARE:
            what = f"{_percent(varied.plain)} of the pictures of {shown(label)} have a plain background of one colour."
            yield finding("plain-backgrounds", what, folder)


def _place(box: tuple[float, float, float, float]) -> str:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across = "left" if x < 1 / 3 else "right" if x > 2 / 3 else "middle"
    down = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else "middle"
    return f"at the {down} {across}" if down != across else "in the middle"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"
