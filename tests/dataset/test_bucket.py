from __future__ import annotations

import numpy as np
import pytest

from lorasmith.dataset.bucket import View, fit, views


def ramp(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), x * 0], -1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (37, 100), (1, 1), (5000, 3), (7, 3000), (64, 65)])
@pytest.mark.parametrize("size", [(64, 64), (32, 48), (96, 32)])
def test_the_result_has_the_size_and_a_flat_colour_stays(shape: tuple[int, int], size: tuple[int, int]) -> None:
    flat = np.full((shape[1], shape[0], 3), (10, 200, 77), dtype=np.uint8)
    for x, y in ((0.0, 0.0), (1.0, 1.0), (0.3, 0.9)):
        result = fit(flat, size, x=x, y=y)
        assert result.shape == (size[1], size[0], 3)
        assert result.dtype == np.uint8
        assert (result == (10, 200, 77)).all()


def test_the_same_size_is_the_same_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(fit(picture, (64, 48)), picture)
    assert np.array_equal(fit(picture, (64, 48), flip=True), picture[:, ::-1])


def test_x_and_y_say_which_part() -> None:
    picture = ramp(256, 64)
    means = [fit(picture, (64, 64), x=x)[..., 0].mean() for x in (0.0, 0.5, 1.0)]
    assert means == pytest.approx([31.5, 127.5, 223.5], abs=2)
    means = [fit(picture.transpose(1, 0, 2), (64, 64), y=y)[..., 0].mean() for y in (0.0, 0.5, 1.0)]
    assert means == pytest.approx([31.5, 127.5, 223.5], abs=2)


def test_shrinking_averages_and_does_not_alias() -> None:
    checks = np.indices((256, 256)).sum(0) % 2 * 255
    result = fit(np.repeat(checks[..., None], 3, -1).astype(np.uint8), (32, 32))
    assert np.abs(result.astype(int) - 127).max() <= 3


def test_views_of_the_middle() -> None:
    assert views("center", 4, False, 0, "a") == [View(0.5, 0.5, False)]
    assert views("center", 4, True, 0, "a") == [View(0.5, 0.5, False), View(0.5, 0.5, True)]


def test_random_views_are_deterministic_and_spread() -> None:
    first = views("random", 6, True, 0, "a")
    assert first == views("random", 6, True, 0, "a")
    assert first != views("random", 6, True, 0, "b")
    assert first != views("random", 6, True, 1, "a")
    assert sum(v.flip for v in first) == 3
    assert not any(v.flip for v in views("random", 6, False, 0, "a"))
    for values in ([v.x for v in first], [v.y for v in first]):
        assert sorted(int(v * 6) for v in values) == list(range(6)), "one in each sixth"
    assert {views("random", 1, True, 0, str(i))[0].flip for i in range(20)} == {True, False}
