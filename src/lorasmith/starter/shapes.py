"""The items the renderer can draw, as polygons and strokes in their own coordinates.

An item lies in the square from -1 to 1, its long axis upright, y downward as in a picture. Every item has two
roles: its ``main`` part (blade, head, canopy, ...) and its ``second`` part (handle, shaft, rim, ...), which are
coloured apart. Shapes vary with the random generator they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
MAIN, SECOND = 0, 1


@dataclass(frozen=True)
class Part:
    """A filled polygon (``width is None``) or a stroke whose width runs from ``width[0]`` to ``width[1]``."""

    role: int
    points: Points
    width: tuple[float, float] | None = None


def _points(*xy: tuple[float, float]) -> Points:
    return np.array(xy, dtype=np.float64)


def _bar(x0: float, y0: float, x1: float, y1: float) -> Points:
    return _points((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _ellipse(cx: float, cy: float, rx: float, ry: float, n: int = 28) -> Points:
    t = np.linspace(0.0, 2.0 * np.pi, n, endpoint=False)
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float, n: int = 20) -> Points:
    t = np.radians(np.linspace(start, stop, n))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def _mirror(points: Points) -> Points:
    return np.asarray(points * np.array([-1.0, 1.0]), dtype=np.float64)


def axe(rng: np.random.Generator) -> list[Part]:
    """One or two curved bits near the top of a handle."""
    half = rng.uniform(0.06, 0.085)
    top, bottom = rng.uniform(-0.95, -0.85), rng.uniform(0.85, 1.0)
    reach, spread = rng.uniform(0.52, 0.72), rng.uniform(0.38, 0.52)
    neck = rng.uniform(0.14, 0.2)
    mid = top + spread + rng.uniform(-0.05, 0.03)
    bulge = rng.uniform(0.08, 0.2)
    edge = _arc(reach - bulge, mid, bulge * 1.6, spread, -80, 80, 12)
    bit = np.concatenate([_points((0.0, mid - neck), (reach * 0.45, mid - neck * 1.15)), edge,
                          _points((reach * 0.45, mid + neck * 1.15), (0.0, mid + neck))])  # fmt: skip
    parts = [Part(SECOND, _bar(-half, top, half, bottom)), Part(MAIN, bit)]
    if rng.random() < 0.4:
        parts.append(Part(MAIN, _mirror(bit)))
    else:
        back = rng.uniform(0.12, 0.24)
        parts.append(Part(MAIN, _bar(-back, mid - neck, 0.0, mid + neck)))
    return parts


def _shaft(rng: np.random.Generator, top: float) -> Part:
    half = rng.uniform(0.055, 0.08)
    return Part(SECOND, _bar(-half, top, half, 1.0))


def spear(rng: np.random.Generator) -> list[Part]:
    """A leaf-shaped point on a long shaft."""
    length, half = rng.uniform(0.5, 0.72), rng.uniform(0.17, 0.26)
    belly = rng.uniform(0.5, 0.75)
    base = -1.0 + length
    leaf = _points((0, -1), (half * 0.75, -1 + length * belly * 0.55), (half, -1 + length * belly), (0.07, base),
                   (-0.07, base), (-half, -1 + length * belly), (-half * 0.75, -1 + length * belly * 0.55))  # fmt: skip
    return [_shaft(rng, base - 0.05), Part(MAIN, leaf)]


def trident(rng: np.random.Generator) -> list[Part]:
    """Three prongs on a crossbar at the head of a long shaft."""
    spread, depth = rng.uniform(0.38, 0.52), rng.uniform(0.55, 0.72)
    thick = rng.uniform(0.1, 0.13)
    base = -1.0 + depth
    parts = [_shaft(rng, base)]
    for x, tip in ((-spread, -0.93), (0.0, -1.0), (spread, -0.93)):
        parts.append(Part(MAIN, _points((x, tip + 0.12), (x, base)), (thick, thick)))
        barb = thick * rng.uniform(0.95, 1.25)
        parts.append(Part(MAIN, _points((x, tip - 0.05), (x + barb, tip + 0.24), (x - barb, tip + 0.24))))
    cross = _arc(0.0, base - 0.02, spread, rng.uniform(0.02, 0.16), 0, 180, 14)
    parts.append(Part(MAIN, cross, (thick, thick)))
    return parts


def whip(rng: np.random.Generator) -> list[Part]:
    """A long tapering lash, coiled in a spiral, on a short thick handle."""
    turns = rng.uniform(1.6, 2.2)
    outer, inner = rng.uniform(0.68, 0.8), rng.uniform(0.16, 0.26)
    start = rng.uniform(70, 110)
    t = np.linspace(0.0, 1.0, 70)
    radius = outer + (inner - outer) * t
    angle = np.radians(start + 360.0 * turns * t)
    coil = np.stack([radius * np.cos(angle), radius * np.sin(angle) * rng.uniform(0.8, 1.0) - 0.2], axis=1)
    first, heading = coil[0], coil[0] - coil[2]
    heading = heading / np.linalg.norm(heading)
    grip = np.stack([first, first + heading * rng.uniform(0.55, 0.7)])
    grip_width = rng.uniform(0.19, 0.24)
    return [
        Part(MAIN, coil, (rng.uniform(0.14, 0.17), rng.uniform(0.05, 0.08))),
        Part(SECOND, grip, (grip_width, grip_width)),
    ]


def sword(rng: np.random.Generator) -> list[Part]:
    """A straight or slightly tapering blade, a cross-guard, a grip and a pommel."""
    half, hilt = rng.uniform(0.11, 0.17), rng.uniform(0.42, 0.55)
    point, taper = rng.uniform(0.15, 0.4), rng.uniform(0.7, 1.0)
    guard = rng.uniform(0.3, 0.45)
    blade = _points((0, -1), (half * taper, -1 + point), (half, hilt), (-half, hilt), (-half * taper, -1 + point))
    grip = rng.uniform(0.06, 0.08)
    return [
        Part(MAIN, blade),
        Part(SECOND, _bar(-grip, hilt, grip, 0.95)),
        Part(SECOND, _bar(-guard, hilt - 0.06, guard, hilt + rng.uniform(0.04, 0.08))),
        Part(SECOND, _ellipse(0, 0.93, 0.11, 0.11, 14)),
    ]


def hammer(rng: np.random.Generator) -> list[Part]:
    """A block across the top of a handle, sometimes with a claw."""
    half, top = rng.uniform(0.065, 0.09), -0.85
    reach, tall = rng.uniform(0.45, 0.62), rng.uniform(0.36, 0.48)
    parts = [Part(SECOND, _bar(-half, top, half, rng.uniform(0.85, 1.0)))]
    if rng.random() < 0.4:
        claw = _points((0, top), (-reach * 1.1, top + tall * 0.75), (-reach * 0.7, top + tall * 0.8), (0, top + tall))
        parts += [Part(MAIN, claw), Part(MAIN, _bar(-0.05, top, reach, top + tall))]
    else:
        parts.append(Part(MAIN, _bar(-reach, top, reach, top + tall)))
    return parts


def bow(rng: np.random.Generator) -> list[Part]:
    """A bent limb with a string across it."""
    depth, thick = rng.uniform(0.55, 0.8), rng.uniform(0.12, 0.17)
    x = -depth * 0.35
    limb = _arc(x, 0, depth, 0.95, -90, 90, 26)
    if rng.random() < 0.4:
        tip = rng.uniform(0.1, 0.18)
        limb = np.concatenate([_points((x - tip, -0.9)), limb, _points((x - tip, 0.9))])
    return [
        Part(SECOND, np.stack([limb[0], limb[-1]]), (0.055, 0.055)),
        Part(MAIN, limb, (thick, thick)),
    ]


def shield(rng: np.random.Generator) -> list[Part]:
    """A heater or round shield with a rim."""
    if rng.random() < 0.5:
        radius = rng.uniform(0.78, 0.9)
        outer = _ellipse(0, 0, radius, radius, 36)
    else:
        wide = rng.uniform(0.65, 0.8)
        right = _points((0, -0.85), (wide, -0.85), (wide, -0.1), (wide * 0.8, 0.4), (wide * 0.42, 0.75), (0, 0.98))
        outer = np.concatenate([right, _mirror(right)[::-1]])
    rim = rng.uniform(0.76, 0.83)
    return [Part(SECOND, outer), Part(MAIN, outer * rim)]


def key(rng: np.random.Generator) -> list[Part]:
    """A ring, a stem and two or three teeth; the ring carries the second colour."""
    ring, thick = rng.uniform(0.26, 0.34), rng.uniform(0.14, 0.18)
    parts = [Part(SECOND, _ellipse(0, -0.6, ring, ring), (thick, thick))]
    parts[0] = Part(SECOND, np.concatenate([parts[0].points, parts[0].points[:1]]), (thick, thick))
    stem = rng.uniform(0.075, 0.095)
    parts.append(Part(MAIN, _bar(-stem, -0.6 + ring, stem, 0.98)))
    teeth = int(rng.integers(2, 4))
    for i in range(teeth):
        y = 0.92 - i * 0.26
        parts.append(Part(MAIN, _bar(0, y - 0.15, rng.uniform(0.28, 0.42), y)))
    return parts


def crown(rng: np.random.Generator) -> list[Part]:
    """A band with points, and jewels on them."""
    points = int(rng.integers(3, 6))
    wide, flare = rng.uniform(0.7, 0.8), rng.uniform(1.0, 1.2)
    band, top, dip = 0.6, rng.uniform(-0.65, -0.5), rng.uniform(-0.05, 0.15)
    xs = np.linspace(-wide, wide, 2 * points - 1)
    zigzag = [(x * flare, top) if i % 2 == 0 else (x * (1 + flare) / 2, dip) for i, x in enumerate(xs)]
    outline = _points((-wide, band), *zigzag, (wide, band))
    parts = [Part(MAIN, outline), Part(SECOND, _bar(-wide, band - 0.2, wide, band + 0.06))]
    parts += [Part(SECOND, _ellipse(x, y, 0.11, 0.11, 12)) for x, y in zigzag[::2]]
    return parts


def mug(rng: np.random.Generator) -> list[Part]:
    """A cup with a round handle at its side."""
    wide, top = rng.uniform(0.5, 0.6), rng.uniform(-0.75, -0.6)
    taper = rng.uniform(0.78, 1.0)
    body = _points((-wide - 0.12, top), (wide - 0.12, top), (wide * taper - 0.12, 0.75), (-wide * taper - 0.12, 0.75))
    thick = rng.uniform(0.15, 0.19)
    loop = _arc(wide - 0.18, 0.05, rng.uniform(0.4, 0.48), rng.uniform(0.36, 0.46), -90, 90, 16)
    return [Part(SECOND, loop, (thick, thick)), Part(MAIN, body)]


def umbrella(rng: np.random.Generator) -> list[Part]:
    """A scalloped canopy over a stick with a hook."""
    wide, tall = rng.uniform(0.85, 0.98), rng.uniform(0.7, 0.85)
    rim = -0.05
    dome = _arc(0, rim, wide, tall, 180, 360, 26)
    lobes = int(rng.integers(3, 5))
    step = 2 * wide / lobes
    scallops = [_arc(wide - (i + 0.5) * step, rim, step / 2, step * 0.28, 0, -180, 7) for i in range(lobes)]
    stick = 0.08
    hook = _arc(0.18, 0.72, 0.18, 0.2, 180, 20, 12)
    return [
        Part(SECOND, _points((0, -0.95), (0, 0.72)), (stick, stick)),
        Part(SECOND, hook, (stick * 1.2, stick * 1.2)),
        Part(MAIN, np.concatenate([dome, *scallops])),
    ]


@dataclass(frozen=True)
class Kind:
    """A kind of item: how it is drawn, and what its two parts are called."""

    draw: Callable[[np.random.Generator], list[Part]]
    main: str
    second: str


KINDS: dict[str, Kind] = {
    "axe": Kind(axe, "blade", "handle"),
    "spear": Kind(spear, "point", "shaft"),
    "trident": Kind(trident, "head", "shaft"),
    "whip": Kind(whip, "lash", "handle"),
    "sword": Kind(sword, "blade", "hilt"),
    "hammer": Kind(hammer, "head", "handle"),
    "bow": Kind(bow, "limb", "string"),
    "shield": Kind(shield, "face", "rim"),
    "key": Kind(key, "stem", "ring"),
    "crown": Kind(crown, "body", "band"),
    "mug": Kind(mug, "cup", "handle"),
    "umbrella": Kind(umbrella, "canopy", "stick"),
}
