"""The arithmetic of the noise schedule.

``abar`` is alpha-bar of Ho et al. 2020: the share of the signal's variance left at a timestep, one number per picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorasmith.errors import ModelError


def add_noise(latents: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Return ``sqrt(abar) x0 + sqrt(1 - abar) eps`` (Ho et al. 2020, equation 4).

    Args:
        latents: x0, (N, C, h, w).
        noise: eps, standard normal, of the same shape.
        abar: (N,), between 0 and 1.
    """
    abar = abar.view(-1, 1, 1, 1)
    return abar.sqrt() * latents + (1 - abar).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Return ``v = sqrt(abar) eps - sqrt(1 - abar) x0`` (Salimans and Ho 2022, section 4); see ``add_noise``."""
    abar = abar.view(-1, 1, 1, 1)
    return abar.sqrt() * noise - (1 - abar).sqrt() * latents


def target(prediction_type: str, latents: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Return what the UNet should answer, in the words of diffusers' ``prediction_type``.

    Raises:
        ModelError: the base predicts something else than noise or velocity.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return velocity(latents, noise, abar)
    raise ModelError(
        f"The base predicts {prediction_type!r}; lorasmith trains bases that predict 'epsilon' or 'v_prediction'.",
        fix="Choose another base, or correct prediction_type in its scheduler/scheduler_config.json.",
    )


def min_snr_weight(prediction_type: str, abar: Tensor, gamma: float) -> Tensor:
    """Return each picture's loss weight, (N,) (Hang et al. 2023, section 3.4); ``gamma`` 0 weighs all alike.

    The paper's ``min(SNR, gamma)`` weighs the error in x0; the error in eps is SNR times that one, the error in v
    SNR + 1 times.
    """
    if gamma == 0:
        return torch.ones_like(abar)
    snr = abar / (1 - abar)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # min(SNR, gamma) / SNR, also where SNR is 0
