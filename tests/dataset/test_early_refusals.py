"""What ``check`` leaves out early, to save time, is nothing that the whole way would have found."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from draw import busy, item
from PIL import Image, ImageDraw, ImageFont

from lorasmith.dataset import overlay_lines, overlay_seeds, overlay_text, subject
from lorasmith.dataset.overlay_profile import promising
from lorasmith.dataset.overlays import find_lines, find_text
from lorasmith.dataset.picture import Picture
from lorasmith.dataset.subject import find_subject
from lorasmith.starter.renderer import render

SIDE = 320
WORDS = ("SAMPLE", "stock photo", "(c) 2023", "www.example.com", "PREVIEW")


def ground(seed: int) -> Picture:
    """Return a drawn picture, busy, plain or in between, with a camera's grain."""
    rng = np.random.default_rng(seed)
    drawn = (busy(seed, SIDE), item(seed, SIDE), render(9000 + seed, size=SIDE).image)[seed % 3]
    return np.clip(drawn + rng.normal(0, 1.5, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8)


def with_line(picture: Picture, seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    angle, half = rng.uniform(0, math.pi), SIDE * rng.uniform(0.3, 0.6)
    centre = rng.uniform(0.25, 0.75, 2) * SIDE
    reach = np.array([math.cos(angle), math.sin(angle)]) * half
    start, end = (np.rint(point * 16).astype(int).tolist() for point in (centre - reach, centre + reach))
    cover = np.zeros(picture.shape[:2], np.uint8)
    cv2.line(cover, start, end, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
    share = (cover / 255 * rng.uniform(0.6, 1))[..., None]
    return np.rint(picture * (1 - share) + rng.choice([0, 255], 3) * share).astype(np.uint8)


def with_text(picture: Picture, seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(picture)
    place = (int(rng.integers(5, 60)), int(rng.integers(5, SIDE - 50)))
    colour = (255, 255, 255) if picture.mean() < 150 else (0, 0, 0)
    ImageDraw.Draw(image).text(
        place, WORDS[seed % len(WORDS)], colour, ImageFont.load_default(int(rng.integers(20, 34)))
    )
    share = rng.uniform(0.5, 0.9)
    return np.rint((1 - share) * picture + share * np.array(image)).astype(np.uint8)


def test_no_seed_of_a_sure_stray_line_is_refused() -> None:
    sure = 0
    for seed in range(16):
        picture = with_line(ground(seed), seed)
        seeds = overlay_seeds.seeds_among(overlay_seeds.marks_of(picture), 1.0)
        for each, promises in zip(seeds, promising(picture, seeds)):
            segment = overlay_lines._measured(picture, *each)
            if segment and segment.stray and overlay_lines._sureness_alone(segment, picture.shape) >= 0.5:
                sure += 1
                assert promises, f"seed {seed}: {segment}"
    assert sure >= 8


def test_lines_are_found_among_few_marks_as_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [with_line(ground(seed), seed) for seed in range(18)]
    monkeypatch.setattr(overlay_seeds, "_MARKS", 1 << 30)
    among_all = sum(bool(find_lines(picture, 0.5)) for picture in pictures)
    monkeypatch.setattr(overlay_seeds, "_MARKS", 1000)  # a third or so of what is left of most
    marks = [overlay_seeds.marks_of(picture) for picture in pictures]
    kept = [overlay_seeds.thinned(each)[0] for each in marks]
    assert any(cv2.countNonZero(few) < cv2.countNonZero(each) / 2 for few, each in zip(kept, marks))
    assert all(cv2.countNonZero(few) <= 1100 for few in kept)
    assert sum(bool(find_lines(picture, 0.5)) for picture in pictures) >= among_all - 1 >= 5


def test_lone_marks_are_dropped_and_a_line_s_are_kept() -> None:
    picture = np.full((SIDE, SIDE, 3), 90, np.uint8)
    picture[::16, ::16] = 200
    assert not overlay_seeds.marks_of(picture).any()
    cv2.line(picture, (20, 30), (300, 250), (220, 220, 220), 2, cv2.LINE_AA)
    line = np.zeros((SIDE, SIDE), np.uint8)
    cv2.line(line, (20, 30), (300, 250), 1, 3)
    marks = overlay_seeds.marks_of(picture)
    assert (marks & line).sum() > 250
    assert (marks & line).sum() > 0.9 * marks.sum()


def test_no_row_of_drawn_text_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def sure(picture: Picture) -> list[tuple[tuple[int, ...], float]]:
        return [(text.box, text.confidence) for text in find_text(picture, 0.5)]

    pictures = [with_text(ground(seed), seed) for seed in range(15)]
    early = [sure(picture) for picture in pictures]
    for limit in ("_CROOKED", "_RAGGED", "_UNEVEN"):
        monkeypatch.setattr(overlay_text, limit, math.inf)
    monkeypatch.setattr(overlay_text, "_HOLLOW", 0.0)
    assert early == [sure(picture) for picture in pictures]
    assert sum(map(bool, early)) >= 7


Shapes = list[tuple[int, int, int, int]]
LETTERS: Shapes = [(30 + 18 * i, 100, wide, 14) for i, wide in enumerate((8, 11, 6, 10, 12, 7, 9))]


def judged(shapes: Shapes, hollow: bool = False) -> overlay_text.Row | None:
    """Judge a row of rectangles, or of L's, each given by left, top, width and height."""
    picture = np.full((200, SIDE, 3), 90, np.uint8)
    for left, top, wide, tall in shapes:
        picture[top : top + tall, left : left + wide] = 150
        if hollow:
            picture[top : top + tall - 2, left + 2 : left + wide] = 90
    level = 18
    stands = cv2.subtract(picture[:, :, 0], np.full((200, SIDE), 90, np.uint8))
    pieces = overlay_text._pieces(stands, level)
    assert pieces is not None
    assert len(pieces) == len(shapes)
    marks = overlay_text._at_least(stands, level)
    rim = np.asarray(cv2.subtract(marks, cv2.erode(marks, np.ones((3, 3), np.uint8))))
    return overlay_text._judged(picture, pieces, np.argsort(pieces.centre[:, 0]), rim, 1.0, level)


def test_a_row_as_of_letters_is_kept() -> None:
    assert judged(LETTERS) is not None


@pytest.mark.parametrize(
    ("shapes", "limit", "none"),
    [
        ([(x, y + 6 * (i % 2), w, h) for i, (x, y, w, h) in enumerate(LETTERS)], "_CROOKED", math.inf),
        ([(x, y, w, 10 + 4 * (i % 3)) for i, (x, y, w, h) in enumerate(LETTERS)], "_CROOKED", math.inf),
        (
            [(30 + 9 * i + 60 * (i // 2), y, w % 3 + 5, h) for i, (x, y, w, h) in enumerate(LETTERS)],
            "_RAGGED",
            math.inf,
        ),
        ([(x, y, 3 if i % 2 else 12, h) for i, (x, y, w, h) in enumerate(LETTERS)], "_UNEVEN", math.inf),
        ([(20 + 36 * i, y, 3 * w - 4, h + 12) for i, (x, y, w, h) in enumerate(LETTERS)], "_HOLLOW", 0.0),
        ([(x, y, 8, h) for i, (x, y, w, h) in enumerate(LETTERS)], "_ONE_SHAPE", 0.0),
    ],
)
def test_a_row_is_refused_for_one_fault(
    shapes: Shapes, limit: str, none: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    hollow = limit == "_HOLLOW"
    assert judged(shapes, hollow) is None
    monkeypatch.setattr(overlay_text, limit, none)
    assert judged(shapes, hollow) is not None


def test_the_fast_subject_is_the_exact_one() -> None:
    overlaps = []
    for seed in range(16):
        picture = render(7300 + seed, size=256, backgrounds=("plain", "gradient", "sand", "sky", "wood")).image
        fast, exact = find_subject(picture, fast=True), find_subject(picture)
        if min(fast.confidence, exact.confidence) >= 0.5:
            overlaps.append((fast.mask & exact.mask).sum() / (fast.mask | exact.mask).sum())
    assert len(overlaps) >= 8
    assert np.mean(overlaps) >= 0.9


def test_what_grabcut_is_spared_would_not_have_become_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [ground(seed) for seed in range(0, 30, 3)] + [render(7400 + seed, size=192).image for seed in range(16)]
    quick = [find_subject(picture, fast=True).confidence for picture in pictures]
    monkeypatch.setattr(subject, "_HOPELESS", 0.0)
    patient = [find_subject(picture, fast=True).confidence for picture in pictures]
    spared = [(a, b) for a, b in zip(quick, patient) if a != b]
    assert spared
    assert all(a < 0.5 and b < 0.5 for a, b in spared)


def test_no_faint_bridge_leads_to_the_frame() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:94, 40:60] = True
    for shade, reaches in ((3.0, False), (9.0, True)):
        score = np.where(mask, 60.0, 0.0).astype(np.float32)
        score[94:, 40:60] = shade
        assert bool(subject._tidy(mask, score, plain=True)[-1].any()) == reaches
