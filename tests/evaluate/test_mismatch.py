from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lorasmith.evaluate import mismatch
from lorasmith.evaluate.mismatch import Mismatches, embed_captions, embed_files, find_mismatches

Floats = NDArray[np.float32]


def world(count: int, noise: float, seed: int) -> tuple[Floats, Floats]:
    """Return embeddings of pictures and captions as an imperfect CLIP of another make each time would give them."""
    rng = np.random.default_rng(seed)
    meaning = rng.normal(size=(count, 24))
    offset_a, offset_b = rng.normal(size=(2, 24)) * 3  # the gap between the two kinds of embedding
    a = meaning + offset_a + noise * rng.normal(size=meaning.shape)
    b = meaning + offset_b + noise * rng.normal(size=meaning.shape)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    return unit(a), unit(b)


def texts(count: int) -> list[str]:
    return [f"caption {i}" for i in range(count)]


def swapped(count: int, pairs: int, seed: int) -> tuple[NDArray[np.int64], set[int]]:
    chosen = np.random.default_rng(seed).permutation(count)[: 2 * pairs]
    order = np.arange(count)
    order[chosen[::2]], order[chosen[1::2]] = chosen[1::2], chosen[::2]
    return order, {int(i) for i in chosen}


@pytest.mark.parametrize("noise", [0.2, 0.45, 0.65])
def test_swaps_are_found_whatever_the_clip(noise: float) -> None:
    found = wrong = alarms = right = 0
    for seed in range(8):
        pictures, captions = world(200, noise, seed)
        order, chosen = swapped(200, 10, seed)
        result = find_mismatches(pictures, captions[order], [texts(200)[i] for i in order])
        listed = {m.index for m in result.found}
        found, wrong = found + len(listed & chosen), wrong + len(chosen)
        alarms, right = alarms + len(listed - chosen), right + 200 - len(chosen)
        assert result.telling
        assert abs(result.wrong_share - 0.1) < 0.06
    assert found >= 0.88 * wrong
    assert alarms <= 0.03 * right


def test_swapped_pairs_are_named_with_evidence() -> None:
    pictures, captions = world(100, 0.2, 0)
    order, chosen = swapped(100, 5, 3)
    result = find_mismatches(pictures, captions[order], texts(100))
    named = [m for m in result.found if m.swapped_with is not None]
    assert len(named) >= 8
    for m in named:
        assert m.swapped_with == m.best_caption == order[m.index]
        assert m.index in chosen
        assert 0 < m.captions_better < 100
        assert 0 < m.pictures_better < 100
        assert m.better == pytest.approx((m.captions_better + m.pictures_better) / (2 * 99))
    assert [m.better for m in result.found] == sorted((m.better for m in result.found), reverse=True)


def test_right_captions_are_left_alone() -> None:
    listed = 0
    for seed in range(10):
        pictures, captions = world(150, 0.6, seed)
        result = find_mismatches(pictures, captions, texts(150))
        listed += len(result.found)
        assert result.wrong_share < 0.03
    assert listed <= 0.01 * 1500


def test_a_clip_that_tells_nothing_is_found_out() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 5, 100):
        a, b = rng.normal(size=(2, count, 8)).astype(np.float32)
        result = find_mismatches(a, b, texts(count))
        assert not result.telling
        assert result.found == ()
    same = np.ones((30, 4), dtype=np.float32)
    assert find_mismatches(same, same, texts(30)).found == ()


def test_equal_captions_do_not_compete() -> None:
    pictures, captions = world(60, 0.2, 1)
    captions[1] = captions[0]
    words = texts(60)
    words[1] = words[0]
    result = find_mismatches(pictures, captions, words)
    assert 0 not in {m.index for m in result.found}
    all_same = find_mismatches(pictures, np.tile(captions[:1], (60, 1)), ["an axe"] * 60)
    assert all_same.found == ()
    assert (all_same.better == 0).all()


def test_blocks_give_what_the_whole_table_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, captions = world(90, 0.7, 5)
    order, _ = swapped(90, 6, 5)
    words = [f"caption {i % 80}" for i in order]
    whole = find_mismatches(pictures, captions[order], words)
    monkeypatch.setattr(mismatch, "_BLOCK", 7)
    parts: Mismatches = find_mismatches(pictures, captions[order], words)
    assert parts.found == whole.found
    assert np.array_equal(parts.better, whole.better)
    scores = pictures @ captions[order].T
    scores = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True)
    own, other = np.diag(scores), np.array([[a != b for b in words] for a in words])
    by_hand = (((scores > own[:, None]) & other).sum(1) + ((scores > own) & other).sum(0)) / (2 * other.sum(1))
    assert np.abs(by_hand - whole.better).max() <= 1 / 89


def test_files_and_captions_are_embedded_by_the_judge(tmp_path: Path) -> None:
    from lorasmith.model.judge import load_judge
    from lorasmith.starter.paths import judge_folder
    from lorasmith.starter.renderer import render

    drawn = [render(90_500_000 + i, blossom=0.0) for i in range(24)]
    paths = []
    for i, each in enumerate(drawn):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(each.image).save(paths[-1])
    paths.insert(3, tmp_path / "broken.png")
    paths[3].write_bytes(b"x")
    judge = load_judge(judge_folder())
    events = embed_files(judge, paths, batch=5)
    done = []
    while True:
        try:
            done.append(next(events).done)  # type: ignore[attr-defined]
        except StopIteration as end:
            vectors = end.value
            break
    assert done == [0, 5, 10, 15, 20, 25]
    assert not vectors[3].any()
    assert np.allclose(np.linalg.norm(np.delete(vectors, 3, 0), axis=1), 1, atol=1e-4)
    words = [each.caption for each in drawn]
    embedded = embed_captions(judge, [*words, words[0]], batch=4)
    assert np.array_equal(embedded[0], embedded[-1])
    result = find_mismatches(np.delete(vectors, 3, 0), embedded[:-1], words)
    assert np.median(result.better) <= 0.05


def test_a_clip_to_which_everything_is_alike_tells_nothing() -> None:
    rng = np.random.default_rng(0)
    alike = np.ones((40, 16), np.float32) / 4
    pictures, captions = (alike + rng.normal(0, 1e-4, alike.shape).astype(np.float32) for _ in range(2))
    result = find_mismatches(pictures, captions, [f"caption {n}" for n in range(40)])
    assert not result.telling
    assert not result.found
