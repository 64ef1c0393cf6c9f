from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorasmith.errors import LoraError
from lorasmith.model.lora import (
    UNET_TARGETS,
    LoraConfig,
    attach,
    detach,
    fuse,
    lora_parameters,
    lora_state,
    restore,
    set_lora_weights,
)
from lorasmith.model.stable_diffusion import StableDiffusion, load_base


def outputs(sd: StableDiffusion) -> torch.Tensor:
    """Return what the UNet makes of fixed noise and a text, so that both parts' LoRAs show."""
    noise = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0)).to(sd.dtype)
    return sd.unet(noise, torch.tensor(10), encoder_hidden_states=sd.encode_text(["an axe", "b"])).sample


def randomise(parameters: list[torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        parameter.data.normal_(std=0.2, generator=generator)


def all_config(**changes: object) -> LoraConfig:
    return LoraConfig(**{"rank": 3, "alpha": 6.0, "targets": "all", "text_encoder": True, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", UNET_TARGETS)
@pytest.mark.parametrize("text_encoder", [False, True])
def test_attached_and_fused_compute_the_same(sd: StableDiffusion, targets: str, text_encoder: bool) -> None:
    base = outputs(sd)
    config = all_config(targets=targets, text_encoder=text_encoder)
    parameters = attach(sd, config)
    assert torch.equal(outputs(sd), base)
    assert lora_state(sd).is_zero
    randomise(parameters)
    attached, lora = outputs(sd), lora_state(sd)
    assert not lora.is_zero
    assert (lora.rank, lora.alpha) == (3, 6)
    assert (attached - base).abs().max() > 0.05
    detach(sd)
    assert torch.equal(outputs(sd), base)
    fuse(sd, lora)
    assert torch.allclose(outputs(sd), attached, atol=2e-5)
    restore(sd)
    assert torch.equal(outputs(sd), base)


def test_targets_are_what_they_say(sd: StableDiffusion) -> None:
    for targets, kinds in UNET_TARGETS.items():
        attach(sd, all_config(targets=targets, text_encoder=False))
        assert set(lora_state(sd).targets) == set(kinds)
        detach(sd)


def test_only_the_lora_is_trained_and_each_part_has_its_own(sd: StableDiffusion) -> None:
    parameters = attach(sd, all_config())
    everything = [*sd.unet.parameters(), *sd.text_encoder.parameters(), *sd.vae.parameters()]
    assert {id(p) for p in everything if p.requires_grad} == {id(p) for p in parameters}
    parts = lora_parameters(sd)
    assert [id(p) for p in parts["unet"] + parts["text_encoder"]] == [id(p) for p in parameters]
    randomise(parameters)
    outputs(sd).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_the_first_weights_depend_on_the_seed_alone(tiny_base: Path, sd: StableDiffusion) -> None:
    state = torch.get_rng_state()
    attach(sd, all_config(), seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    other = load_base(str(tiny_base), dtype=torch.bfloat16)
    torch.manual_seed(99)
    attach(other, all_config(), seed=7)
    first, second = lora_state(sd).tensors, lora_state(other).tensors
    assert all(torch.equal(first[key], second[key]) for key in first)
    detach(other)
    attach(other, all_config(), seed=8)
    assert not all(torch.equal(first[key], t) for key, t in lora_state(other).tensors.items())


def test_lora_weights_stay_float32_in_a_half_base(sd: StableDiffusion) -> None:
    parameters = attach(sd, all_config())
    randomise(parameters)
    full = outputs(sd)
    sd.to("cpu", torch.bfloat16)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert sd.unet.conv_out.weight.dtype == torch.bfloat16
    half = outputs(sd)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().mean() < 0.02
    half.float().square().mean().backward()
    assert {p.grad.dtype for p in parameters if p.grad is not None} == {torch.float32}


def test_weights_come_back_into_an_attached_lora(sd: StableDiffusion) -> None:
    randomise(attach(sd, all_config()))
    lora, then = lora_state(sd), outputs(sd)
    detach(sd)
    attach(sd, all_config(alpha=1.0), seed=3)
    set_lora_weights(sd, lora)
    assert torch.equal(outputs(sd), then)
    assert lora_state(sd).alpha == 6
    detach(sd)
    attach(sd, all_config(rank=2))
    with pytest.raises(LoraError, match="not of the form"):
        set_lora_weights(sd, lora)


def test_loras_add_up_and_weights_scale(sd: StableDiffusion) -> None:
    base = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.clone()
    randomise(attach(sd, all_config()))
    lora = lora_state(sd)
    detach(sd)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = lora.pair(name)
    fuse(sd, lora, 0.5)
    fuse(sd, lora, -0.25)
    now = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    assert torch.allclose(now - base, 0.25 * 2 * b @ a, atol=1e-6)
    assert lora.norms()[name] == pytest.approx(float((2 * b @ a).norm()), rel=1e-5)


def test_another_architecture_is_refused_and_nothing_changes(sd: StableDiffusion, other_base: Path) -> None:
    other = load_base(str(other_base))
    randomise(attach(sd, all_config()))
    lora = lora_state(sd)
    before = outputs(other)
    with pytest.raises(LoraError) as caught:
        fuse(other, lora)
    assert "attn2.to_k" in caught.value.what
    assert "48" in caught.value.what
    assert torch.equal(outputs(other), before)
    assert not other.originals


def test_attaching_twice_or_reading_nothing_is_an_error(sd: StableDiffusion) -> None:
    with pytest.raises(LoraError, match="no LoRA"):
        lora_state(sd)
    attach(sd, LoraConfig(rank=2, alpha=2))
    with pytest.raises(LoraError, match="already"):
        attach(sd, LoraConfig(rank=2, alpha=2))
    detach(sd)
    detach(sd)
