"""Bases in one file of the original layout, against diffusers' own reading of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorasmith.errors import ModelError
from lorasmith.model.assemble import build
from lorasmith.model.convert import convert
from lorasmith.model.find_base import find_base
from lorasmith.model.original_layout import SD1_SETTINGS, ema_name, original_unet_names, original_vae_names, unet_config
from lorasmith.model.stable_diffusion import StableDiffusion, load_base

from .sd1_like import TEXT, UNET, VAE, ema_of, write_folder

PARTS = ("unet", "vae", "text_encoder")
SD15_UNET = {**UNET, "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
SD15_VAE = {**VAE, "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4}  # fmt: skip
BESIDE = {
    "betas": torch.rand(1000),
    "global_step": torch.tensor(840000),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("sd1-like"))


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "base.safetensors"
    for _ in convert(find_base(str(folder)), out):
        pass
    return out


@pytest.fixture(scope="module")
def state(file: Path) -> dict[str, Tensor]:
    return load_file(file)


def same(a: StableDiffusion, b: StableDiffusion, parts: tuple[str, ...] = PARTS) -> bool:
    for part in parts:
        left, right = (dict(getattr(sd, part).named_parameters()) for sd in (a, b))
        if left.keys() != right.keys() or not all(torch.equal(left[n], right[n]) for n in left):
            return False
    return True


def saved(tmp_path: Path, state: dict[str, Any], name: str = "base.ckpt", **kwargs: Any) -> str:
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [{"lr": 1.0}]}, tmp_path / name, **kwargs)
    return str(tmp_path / name)


def diffusers_unet(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    return convert_ldm_unet_checkpoint(dict(state), {**config, "class_embed_type": None, "addition_embed_type": None})


def test_names_are_those_that_diffusers_reads_at_the_true_size() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    unet = build("unet", SD15_UNET).state_dict()
    assert sum(t.numel() for t in unet.values()) == 859_520_964
    names = original_unet_names(unet, 2)
    assert len(set(names.values())) == len(unet) == 686
    theirs = diffusers_unet({"model.diffusion_model." + names[n]: t for n, t in unet.items()}, SD15_UNET)
    assert {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in unet.items()}
    assert all(theirs[n] is t for n, t in unet.items())  # the very tensors: no two of equal shape are exchanged

    vae = build("vae", SD15_VAE).state_dict()
    names = original_vae_names(vae)
    original = {"first_stage_model." + names[n]: t for n, t in vae.items()}
    theirs = convert_ldm_vae_checkpoint(original, SD15_VAE)
    assert theirs.keys() == vae.keys()
    squeezed = {n for n in vae if ".attentions." in n and ".to_" in n and n.endswith("weight")}
    assert all(theirs[n] is vae[n] for n in vae.keys() - squeezed)


def test_known_names_of_the_published_file() -> None:
    names = original_unet_names(build("unet", SD15_UNET).state_dict(), 2)
    for ours, theirs in {
        "down_blocks.0.attentions.1.proj_in.weight": "input_blocks.2.1.proj_in.weight",
        "down_blocks.2.downsamplers.0.conv.bias": "input_blocks.9.0.op.bias",
        "mid_block.resnets.1.conv_shortcut.weight": None,
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
    }.items():
        assert names.get(ours) == theirs
    assert ema_name("model.diffusion_model.input_blocks.2.1.proj_in.weight") == (
        "model_ema.diffusion_modelinput_blocks21proj_inweight"
    )


def test_settings_are_read_off_the_shapes() -> None:
    unet = build("unet", SD15_UNET).state_dict()
    shapes = {theirs: tuple(unet[n].shape) for n, theirs in original_unet_names(unet, 2).items()}
    config = unet_config(shapes, SD1_SETTINGS["unet"])
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()} == SD15_UNET


def test_a_file_holds_the_folders_weights(folder: Path, file: Path) -> None:
    a, b = load_base(str(folder)), load_base(str(file))
    assert same(a, b)
    assert (a.sha256, a.vae_sha256) == (b.sha256, b.vae_sha256)  # so latents are cached once for both
    assert torch.equal(a.encode_text(["a red axe", ""]), b.encode_text(["a red axe", ""]))
    assert (b.max_tokens, b.latent_channels, b.vae_factor, b.scaling_factor) == (77, 4, 2, 0.18215)
    assert torch.equal(a.alphas_cumprod, b.alphas_cumprod)


def test_pickles_of_every_layout_hold_the_same(file: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    wanted = load_base(str(file))
    for name, kwargs in (("a.ckpt", {}), ("b.ckpt", {"_use_new_zipfile_serialization": False}), ("c.safetensors", {})):
        assert same(wanted, load_base(saved(tmp_path, state | BESIDE, name, **kwargs)))


def test_without_the_text_models_level(file: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    shorter = {k.replace("transformer.text_model.", "transformer."): v for k, v in (state | BESIDE).items()}
    assert same(load_base(str(file)), load_base(saved(tmp_path, shorter)))


def test_non_ema_and_ema(file: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(tmp_path, state | ema_of(state))
    wanted = load_base(str(file))
    for choice in ("auto", "non-ema"):
        found = load_base(path, weights=choice)  # type: ignore[arg-type]
        assert same(wanted, found)
        assert len(found.notes) == 1
        assert "EMA" in found.notes[0]
    averaged = load_base(path, weights="ema")
    assert same(wanted, averaged, ("vae", "text_encoder"))
    ours, theirs = dict(wanted.unet.named_parameters()), dict(averaged.unet.named_parameters())
    assert all(torch.equal(theirs[n], ours[n] + 0.01) for n in ours)
    assert averaged.sha256 != wanted.sha256
    with pytest.raises(ModelError, match="no moving average"):
        load_base(str(file), weights="ema")


def test_an_incomplete_average_is_refused_by_name(state: dict[str, Tensor], tmp_path: Path) -> None:
    whole = state | ema_of(state)
    gone = "model_ema.diffusion_modelinput_blocks10in_layers2weight"
    path = saved(tmp_path, {k: v for k, v in whole.items() if k != gone})
    load_base(path)
    with pytest.raises(ModelError, match=gone):
        load_base(path, weights="ema")


@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_a_file_with_nothing_but_the_average_is_refused_as_that(
    state: dict[str, Tensor], tmp_path: Path, weights: str
) -> None:
    bare = {name: value for name, value in state.items() if not name.startswith("model.diffusion_model.")}
    with pytest.raises(ModelError, match=r"only the moving average"):
        load_base(saved(tmp_path, bare | ema_of(state)), weights=weights)


def test_unwanted_weights_are_never_read(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasmith.model.checkpoint_file import Checkpoint

    read: list[str] = []
    original = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name, **k: (read.append(name), original(self, name, **k))[1])
    load_base(saved(tmp_path, state | ema_of(state) | {"betas": torch.rand(5)}))
    assert len(read) == len(set(read)) == len(state)
    assert not [name for name in read if name.startswith("model_ema")]


def test_missing_and_unknown_weights_are_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    for gone, word in (
        ("model.diffusion_model.middle_block.1.norm.bias", "UNet"),
        ("first_stage_model.decoder.norm_out.bias", "VAE"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text encoder"),
    ):
        with pytest.raises(ModelError, match=gone.replace(".", r"\.")) as caught:
            load_base(saved(tmp_path, {k: v for k, v in state.items() if k != gone}))
        assert word in caught.value.what
    with pytest.raises(ModelError, match="control"):
        load_base(saved(tmp_path, state | {"model.diffusion_model.control.weight": torch.ones(3)}))
    load_base(saved(tmp_path, state | {"first_stage_model.loss.logvar": torch.ones(1)}))


def test_a_weight_that_is_not_finite_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    name = "model.diffusion_model.out.2.weight"
    bad = state[name].clone()
    bad[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"out\.2\.weight.*9 NaN"):
        load_base(saved(tmp_path, state | {name: bad}))
    large = state[name].clone()
    large[0] = 1e38  # sums to infinity, and is none
    load_base(saved(tmp_path, state | {name: large}))
    with pytest.raises(ModelError, match="too large for fp16"):
        load_base(saved(tmp_path, state | {name: large}), dtype=torch.float16)


def test_a_file_without_a_vae_takes_another(folder: Path, file: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    without = {k: v for k, v in state.items() if not k.startswith("first_stage_model.")}
    path = saved(tmp_path, without)
    with pytest.raises(ModelError, match="no VAE") as caught:
        load_base(path)
    assert "--vae" in str(caught.value.fix)
    vae = {k.removeprefix("first_stage_model."): v for k, v in state.items() if k.startswith("first_stage_model.")}
    own = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    wanted = load_base(str(file))
    for source in (
        saved(tmp_path, vae, "bare.safetensors"),
        saved(tmp_path, vae | {"loss.logvar": torch.ones(1)}, "bare.pt"),
        saved(tmp_path, own, "diffusers.safetensors"),
        str(file),
        str(folder / "vae"),
        str(folder),
    ):
        assert same(wanted, load_base(path, vae=source))
    shifted = {k: v + 1 for k, v in vae.items()}
    other = load_base(str(file), vae=saved(tmp_path, shifted, "other.safetensors"))
    assert torch.equal(other.vae.decoder.conv_in.bias, wanted.vae.decoder.conv_in.bias + 1)
    assert other.vae_sha256 != wanted.vae_sha256
    for name, word in (("no-such.safetensors", "no VAE"), (path, "holds no VAE")):
        with pytest.raises(ModelError, match=word):
            load_base(str(file), vae=name)


def test_a_file_without_a_text_encoder_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(tmp_path, {k: v for k, v in state.items() if not k.startswith("cond_stage_model.")})
    with pytest.raises(ModelError, match="no text encoder"):
        load_base(path)


def test_another_noise_schedule_is_refused(file: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    right = load_base(str(file)).alphas_cumprod
    load_base(saved(tmp_path, state | {"alphas_cumprod": right.half()}))
    with pytest.raises(ModelError, match="noise schedule"):
        load_base(saved(tmp_path, state | {"alphas_cumprod": right - right.min()}))
    with pytest.raises(ModelError, match="v-prediction"):
        load_base(saved(tmp_path, state | {"v_pred": torch.tensor([])}))


def test_what_is_no_such_base_is_refused_by_name(state: dict[str, Tensor], tmp_path: Path) -> None:
    inpainting = state | {"model.diffusion_model.input_blocks.0.0.weight": torch.rand(32, 9, 3, 3)}
    with pytest.raises(ModelError, match=r"(?i)inpainting"):
        load_base(saved(tmp_path, inpainting))
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html>log in</html>")
    with pytest.raises(ModelError, match="web page"):
        load_base(str(page))


def test_the_whole_vocabulary_is_there() -> None:
    from lorasmith.model.clip_tokenizer import clip_tokenizer

    tokenizer = clip_tokenizer(49408, 77)
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A  Photo of\ta CAT").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    with pytest.raises(ModelError, match="49,408"):
        clip_tokenizer(50000, 77)


def test_it_trains_and_generates_from_one_file(file: Path) -> None:
    from lorasmith.generate.sample import Request, sample

    sd = load_base(str(file))
    pictures = dict(sample(sd, [Request("an axe", steps=2, width=16, height=16)]))
    assert pictures[0].shape == (16, 16, 3)
    assert TEXT["vocab_size"] == len(sd.tokenizer)
