from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lorasmith.errors import ModelError
from lorasmith.train.noise import add_noise, min_snr_weight, target

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])
ABAR = SCHEDULER.alphas_cumprod[TIMESTEPS]


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    latents, noise = torch.randn(2, len(TIMESTEPS), 6, 4, 5, generator=torch.Generator().manual_seed(0))
    return latents, noise


def test_noise_and_targets_equal_those_of_diffusers(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = pair
    torch.testing.assert_close(add_noise(latents, noise, ABAR), SCHEDULER.add_noise(latents, noise, TIMESTEPS))
    assert target("epsilon", latents, noise, ABAR) is noise
    velocity = SCHEDULER.get_velocity(latents, noise, TIMESTEPS)
    torch.testing.assert_close(target("v_prediction", latents, noise, ABAR), velocity)


def test_another_prediction_is_refused(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="'sample'"):
        target("sample", *pair, ABAR)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weight_is_the_paper_s(gamma: float) -> None:
    snr = compute_snr(SCHEDULER, TIMESTEPS)
    capped = torch.minimum(snr, torch.tensor(gamma))
    torch.testing.assert_close(min_snr_weight("epsilon", ABAR, gamma), capped / snr)
    torch.testing.assert_close(min_snr_weight("v_prediction", ABAR, gamma), capped / (snr + 1))


def test_min_snr_weighs_the_same_error_in_x0_alike(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    # If the answer's error in x0 is d, its error in eps is d * sqrt(SNR) and in v d * sqrt(SNR + 1): the paper's
    # loss min(SNR, gamma) * d^2 must come out of each.
    snr = ABAR / (1 - ABAR)
    wanted = snr.clamp(max=5.0)
    torch.testing.assert_close(min_snr_weight("epsilon", ABAR, 5.0) * snr, wanted)
    torch.testing.assert_close(min_snr_weight("v_prediction", ABAR, 5.0) * (snr + 1), wanted)


def test_min_snr_weight_without_gamma_and_at_the_ends() -> None:
    assert min_snr_weight("epsilon", ABAR, 0.0).tolist() == [1.0] * len(TIMESTEPS)
    assert min_snr_weight("epsilon", torch.tensor([0.0]), 5.0).tolist() == [1.0]
    assert min_snr_weight("v_prediction", torch.tensor([0.0]), 5.0).tolist() == [0.0]
