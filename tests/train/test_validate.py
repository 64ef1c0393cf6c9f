from __future__ import annotations

import torch

from lorasmith.events import Progress
from lorasmith.model.lora import LoraConfig, attach
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.train.encode import LatentSet
from lorasmith.train.step import Batch
from lorasmith.train.validate import validation_batch, validation_loss

from .helpers import drain, latent_set, text_set


def measure(sd: StableDiffusion, batch: Batch, at_once: int = 8) -> float:
    events, loss = drain(validation_loss(sd, batch, at_once))
    assert [e.done for e in events if isinstance(e, Progress)][-1] == len(batch)
    return float(loss)


def test_timesteps_are_stratified(sd: StableDiffusion) -> None:
    batch = validation_batch(latent_set(5), text_set(sd), sd.alphas_cumprod)
    assert len(batch) == 5 * 8
    for own in batch.timesteps.view(5, 8):
        assert (own * 8 // 1000).tolist() == list(range(8))
    assert (batch.timesteps.sort().values * 40 // 1000).tolist() == list(range(40))  # together one in each fortieth


def test_many_pictures_get_fewer_timesteps_each(sd: StableDiffusion) -> None:
    assert len(validation_batch(latent_set(100, 1), text_set(sd), sd.alphas_cumprod)) == 200
    assert len(validation_batch(latent_set(300, 1), text_set(sd), sd.alphas_cumprod)) == 300


def test_the_loss_does_not_depend_on_chance_or_order(sd: StableDiffusion) -> None:
    latents, text = latent_set(5), text_set(sd)
    torch.manual_seed(1)
    first = measure(sd, validation_batch(latents, text, sd.alphas_cumprod))
    torch.manual_seed(2)
    turned = LatentSet(latents.examples[::-1], latents.mean.flip(0), latents.std.flip(0))
    assert measure(sd, validation_batch(turned, text, sd.alphas_cumprod)) == first


def test_an_untrained_adapter_has_the_base_s_loss_and_keeps_its_dropout(sd: StableDiffusion) -> None:
    batch = validation_batch(latent_set(5), text_set(sd), sd.alphas_cumprod)
    base = measure(sd, batch)
    parameters = attach(sd, LoraConfig(rank=4, dropout=0.5), seed=0)
    sd.unet.train()
    assert measure(sd, batch) == base
    assert sd.unet.training and not sd.text_encoder.training
    for parameter in parameters:
        parameter.data.fill_(0.3)
    trained = measure(sd, batch)
    assert trained != base
    assert measure(sd, batch) == trained  # no dropout while measuring
