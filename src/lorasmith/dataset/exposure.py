"""Bring the tones of pictures to a common range, gently."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

_DARK, _BRIGHT, _MIDDLE = 3.0, 97.0, 52.0  # of CIE L*, 0 to 100: what the 2nd, 98th and median tones are brought to
_MOST_GAIN = 1.6
_GAMMAS = (0.75, 1.3)  # a black axe is to stay black


def normalise(picture: Picture, counted: npt.NDArray[np.bool_], strength: float) -> tuple[Picture, dict[str, float]]:
    """Return a picture with its lightness stretched and its middle tone moved, and by how much; hues are kept.

    Args:
        picture: uint8 RGB (height, width, 3).
        counted: bool (height, width), the pixels whose tones count; the curve is applied to all.
        strength: 0 to 1, how far.
    """
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    low, middle, high = (float(v) for v in np.percentile(lab[..., 0][counted], (2, 50, 98)))
    darkest, brightest = (float(v) for v in np.percentile(lab[..., 0], (2, 98)))
    low, high = min(low, darkest), max(high, brightest)  # a white background stays as it is, and keeps its grain
    gain = min(_MOST_GAIN, max(1.0, (_BRIGHT - _DARK) / max(high - low, 1.0)))
    # A range that cannot be stretched to the whole is widened about its middle.
    centre = (low + high) / 2
    half = gain * (high - low) / 2
    fits = 2 * half <= _BRIGHT - _DARK  # what has black and white already stays where it is
    target = min(max(centre, _DARK + half), _BRIGHT - half) if fits else centre
    gain = 1 + (gain - 1) * strength
    shift = (target - centre) * strength
    tones = np.clip((lab[..., 0] - centre) * gain + centre + shift, 0, 100)
    moved = min(max((middle - centre) * gain + centre + shift, 1.0), 99.0)
    gamma = float(np.clip(np.log(_MIDDLE / 100) / np.log(moved / 100), *_GAMMAS))
    gamma = float(gamma**strength)
    lab[..., 0] = 100 * np.power(tones / 100, gamma)
    made = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    how = {"gain": round(gain, 3), "shift": round(shift, 2), "gamma": round(gamma, 3)}
    return np.asarray(np.clip(np.rint(made * 255), 0, 255), dtype=np.uint8), how
