"""Bring the tones of pictures to a common range, gently."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

_DARK, _BRIGHT, _MIDDLE = 3.0, 97.0, 52.0  # of CIE L*, 0 to 100: what the 2nd, 98th and median tones are brought to
_BAND = 4_000_000  # pixels that are changed at once
_MOST_GAIN = 1.6
_GAMMAS = (0.75, 1.3)  # a black axe is to stay black


def normalise(picture: Picture, counted: npt.NDArray[np.bool_], strength: float) -> tuple[Picture, dict[str, float]]:
    """Return a picture with its lightness stretched and its middle tone moved, and by how much; hues are kept.

    Args:
        picture: uint8 RGB (height, width, 3).
        counted: bool (height, width), the pixels whose tones count; the curve is applied to all.
        strength: 0 to 1, how far.
    """
    step = max(1, round((counted.size / _BAND) ** 0.5))  # a large picture is measured on every second pixel or so
    lightness = _lab(picture[::step, ::step])[..., 0]
    some = counted[::step, ::step]
    low, middle, high = (float(v) for v in np.percentile(lightness[some if some.any() else ...], (2, 50, 98)))
    darkest, brightest = (float(v) for v in np.percentile(lightness, (2, 98)))
    low, high = min(low, darkest), max(high, brightest)  # a white background stays as it is, and keeps its grain
    gain = min(_MOST_GAIN, max(1.0, (_BRIGHT - _DARK) / max(high - low, 1.0)))
    # A range that cannot be stretched to the whole is widened about its middle.
    centre = (low + high) / 2
    half = gain * (high - low) / 2
    fits = 2 * half <= _BRIGHT - _DARK  # what has black and white already stays where it is
    target = min(max(centre, _DARK + half), _BRIGHT - half) if fits else centre
    gain = 1 + (gain - 1) * strength
    shift = (target - centre) * strength
    moved = min(max((middle - centre) * gain + centre + shift, 1.0), 99.0)
    gamma = float(np.clip(np.log(_MIDDLE / 100) / np.log(moved / 100), *_GAMMAS))
    gamma = float(gamma**strength)
    made = np.empty_like(picture)
    rows = max(1, _BAND // picture.shape[1])
    for top in range(0, len(picture), rows):
        lab = _lab(picture[top : top + rows])
        tones = np.clip((lab[..., 0] - centre) * gain + centre + shift, 0, 100)
        lab[..., 0] = 100 * np.power(tones / 100, gamma)
        made[top : top + rows] = np.clip(np.rint(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255), 0, 255)
    how = {"gain": round(gain, 3), "shift": round(shift, 2), "gamma": round(gamma, 3)}
    return made, how


def _lab(picture: Picture) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
