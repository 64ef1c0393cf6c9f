from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorasmith.errors import DeviceError, ModelError, RecipeError
from lorasmith.model import stable_diffusion
from lorasmith.model.stable_diffusion import StableDiffusion, computes_slowly, load_base, pick_device, pick_dtype


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_numbers_are_read_from_the_model(sd: StableDiffusion) -> None:
    assert (sd.latent_channels, sd.vae_factor, sd.size, sd.max_tokens, sd.scaling_factor) == (6, 4, 32, 24, 0.5)
    assert sd.prediction_type == "epsilon"
    assert sd.alphas_cumprod.shape == (1000,)
    assert not any(p.requires_grad for part in (sd.unet, sd.vae, sd.text_encoder) for p in part.parameters())


def test_latents_equal_the_vaes(sd: StableDiffusion) -> None:
    pictures = torch.randint(0, 256, (3, 32, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = sd.encode_pictures(pictures)
    latents = sd.vae.encode(pictures.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    assert mean.shape == std.shape == (3, 6, 8, 6)
    assert torch.allclose(mean, latents.mean * 0.5, atol=1e-6)
    assert torch.allclose(std, latents.std * 0.5, atol=1e-6)
    decoded = sd.decode_latents(mean)
    assert (decoded.shape, decoded.dtype) == ((3, 32, 24, 3), torch.uint8)
    assert torch.equal(decoded[1:2], sd.decode_latents(mean[1:2]))


def test_texts(sd: StableDiffusion) -> None:
    texts = ["an axe", "b " * 70, ""]
    assert sd.token_lengths(texts) == [4, 72, 2]
    embedded = sd.encode_text(texts)
    assert embedded.shape == (3, 24, 32)
    assert torch.allclose(embedded[:1], sd.encode_text(["an axe"]), atol=1e-5)
    assert sd.encode_text(["a"] * 130).shape == (130, 24, 32)


def test_the_hash_is_of_the_contents(copy: Path, tiny_base: Path, sd: StableDiffusion) -> None:
    assert load_base(str(copy)).sha256 == sd.sha256
    weights = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"] += 1
    save_file(weights, copy / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    changed = load_base(str(copy))
    assert changed.sha256 != sd.sha256
    assert changed.vae_sha256 == sd.vae_sha256


def test_an_fp16_variant_is_read(copy: Path, sd: StableDiffusion) -> None:
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        weights = {k: v.half().contiguous() for k, v in load_file(copy / part / f"{stem}.safetensors").items()}
        (copy / part / f"{stem}.safetensors").unlink()
        save_file(weights, copy / part / f"{stem}.fp16.safetensors", {"format": "pt"})
    half = load_base(str(copy))
    assert half.unet.conv_in.weight.dtype == torch.float32
    assert torch.equal(half.unet.conv_in.weight, sd.unet.conv_in.weight.half().float())
    assert next(half.text_encoder.parameters()).dtype == torch.float32


def test_loading_is_quiet(tiny_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(str(tiny_base))
    assert capfd.readouterr() == ("", "")


def test_what_is_no_base_is_refused(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    (tmp_path / "file.ckpt").write_bytes(b"x")
    (tmp_path / "nothing").mkdir()
    for name, word in (
        ("no-such-base", "no base"),
        ("nobody/no-such-base", "neither a folder here"),
        (str(tmp_path / "file.ckpt"), "cut off"),
        (str(tmp_path / "nothing"), "model_index.json"),
    ):
        with pytest.raises(ModelError, match=word) as caught:
            load_base(name)
        assert caught.value.fix


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")


def test_damaged_bases_are_refused_by_part(copy: Path) -> None:
    unet = copy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = unet.read_bytes()

    def refused(word: str) -> None:
        with pytest.raises(ModelError, match=word):
            load_base(str(copy))

    weights = load_file(unet)
    save_file({k: v for k, v in weights.items() if k != "conv_in.bias"}, unet, {"format": "pt"})
    refused("conv_in.bias")
    unet.write_bytes(whole[: len(whole) // 2])
    refused("bytes are missing")
    unet.unlink()
    refused("no weights")
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    refused("cut off")
    unet.write_bytes(whole)
    _edit(copy / "model_index.json", _class_name="StableDiffusionXLPipeline")
    refused("StableDiffusionXLPipeline")
    _edit(copy / "model_index.json", _class_name="StableDiffusionPipeline")
    shutil.rmtree(copy / "tokenizer")
    refused("tokenizer")


def test_an_inpainting_base_is_refused(copy: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(copy / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 13}).save_pretrained(copy / "unet")
    with pytest.raises(ModelError, match="inpainting"):
        load_base(str(copy))


def test_devices_and_precisions() -> None:
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert pick_dtype("fp32", cpu) == torch.float32
    assert pick_dtype("bf16", cpu) == torch.bfloat16
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(DeviceError):
        pick_dtype("fp16", cpu)
    with pytest.raises(RecipeError):
        pick_dtype("fp8", cpu)
    with pytest.raises(RecipeError):
        pick_device("gpu")
    with pytest.raises(DeviceError):
        pick_device("cuda:77")


@pytest.mark.parametrize("native", [True, False])
def test_a_cpu_that_imitates_bf16_does_not_take_it_and_says_so(
    native: bool, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable_diffusion, "_cpu_multiplies_bf16", lambda: native)
    cpu = torch.device("cpu")
    assert pick_dtype("auto", cpu) == (torch.bfloat16 if native else torch.float32)
    assert computes_slowly(cpu, torch.bfloat16) is not native
    assert not computes_slowly(cpu, torch.float32) and not computes_slowly(torch.device("cuda"), torch.bfloat16)
    notes = " ".join(load_base(str(tiny_base), dtype=torch.bfloat16).notes)
    assert ("imitates" in notes) is not native
    assert load_base(str(tiny_base)).notes == ()
