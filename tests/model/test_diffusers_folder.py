"""The forms that a base's folder comes in, all of the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorasmith.errors import ModelError
from lorasmith.model.stable_diffusion import StableDiffusion, load_base

from .sd1_like import write_folder

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def weights(folder: Path, part: str) -> dict[str, Tensor]:
    return load_file(folder / part / FILES[part])


def same(a: StableDiffusion, b: StableDiffusion) -> bool:
    pairs = [(getattr(a, part).state_dict(), getattr(b, part).state_dict()) for part in FILES]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)


def test_bin_parts_are_read_without_unpickling(copy: Path, sd: StableDiffusion) -> None:
    for part, name in FILES.items():
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        torch.save(weights(copy, part), copy / part / f"{stem}.bin", _use_new_zipfile_serialization=part != "vae")
        (copy / part / name).unlink()
    found = load_base(str(copy))
    assert same(sd, found)
    assert found.sha256 == sd.sha256


def test_shards_are_read_together(copy: Path, sd: StableDiffusion) -> None:
    for part, name in FILES.items():
        whole = weights(copy, part)
        stem = name.removesuffix(".safetensors")
        for number in (0, 1):
            shard = {k: v for i, (k, v) in enumerate(sorted(whole.items())) if i % 2 == number}
            save_file(shard, copy / part / f"{stem}-0000{number + 1}-of-00002.safetensors")
        index = {"metadata": {}, "weight_map": {}}
        (copy / part / f"{name}.index.json").write_text(json.dumps(index), encoding="utf-8")
        (copy / part / name).unlink()
    assert same(sd, load_base(str(copy)))
    (copy / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        load_base(str(copy))


def test_a_weight_in_two_shards_is_refused(copy: Path) -> None:
    whole = weights(copy, "unet")
    for number in (1, 2):
        save_file(whole, copy / "unet" / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    (copy / "unet" / FILES["unet"]).unlink()
    with pytest.raises(ModelError, match="Two files hold"):
        load_base(str(copy))


def test_ema_and_non_ema_files(copy: Path, sd: StableDiffusion) -> None:
    own = {k: v + 1 for k, v in weights(copy, "unet").items()}
    save_file(own, copy / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    found = load_base(str(copy))
    assert torch.equal(found.unet.conv_in.bias, sd.unet.conv_in.bias + 1)
    assert "EMA" in found.notes[0]
    averaged = load_base(str(copy), weights="ema")
    assert same(sd, averaged)
    assert averaged.notes
    assert averaged.sha256 == sd.sha256 != found.sha256


def test_a_vae_with_the_names_of_old_is_read(copy: Path, sd: StableDiffusion) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for key, tensor in weights(copy, "vae").items():
        for new, name in old.items():
            key = key.replace(new, name)
        renamed[key] = tensor
    assert any(".query." in key for key in renamed)
    save_file(renamed, copy / "vae" / FILES["vae"])
    assert same(sd, load_base(str(copy)))


def test_a_text_encoder_of_transformers_4_is_read(copy: Path, sd: StableDiffusion) -> None:
    short = {k.removeprefix("text_model."): v for k, v in weights(copy, "text_encoder").items()}
    for names in (short, {f"text_model.{k}": v for k, v in short.items()}):
        buffers = {"text_model.embeddings.position_ids": torch.arange(24)[None]}
        save_file(names | buffers, copy / "text_encoder" / FILES["text_encoder"])
        assert same(sd, load_base(str(copy)))


def test_a_hub_id_is_taken_from_the_hubs_cache(
    tiny_base: Path, tmp_path: Path, sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_base, model / "snapshots" / "0123abcd")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abcd")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert same(sd, load_base("someone/tiny"))
    with pytest.raises(ModelError, match="neither a folder here nor in the cache") as caught:
        load_base("someone/other")
    assert "copy the model" in str(caught.value.fix)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\ufeff\x00", "{" * 50_000])
def test_damaged_settings_are_refused(copy: Path, text: str) -> None:
    (copy / "unet" / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="settings are damaged"):
        load_base(str(copy))


def test_settings_and_weights_that_do_not_belong_together(copy: Path) -> None:
    config = json.loads((copy / "unet" / "config.json").read_text("utf-8"))
    (copy / "unet" / "config.json").write_text(json.dumps({**config, "block_out_channels": [8, 32]}), encoding="utf-8")
    with pytest.raises(ModelError, match="of the wrong shape") as caught:
        load_base(str(copy))
    assert "instead of" in caught.value.what


def test_another_family_in_the_same_kind_of_folder_is_refused_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "sd2", use_linear_projection=True)
    with pytest.raises(ModelError, match=r"This is a Stable Diffusion 2\.x base"):
        load_base(str(tmp_path / "sd2"))


def test_a_wish_for_the_average_that_the_folder_cannot_tell_is_said(copy: Path) -> None:
    assert load_base(str(copy)).notes == ()
    assert "does not say" in load_base(str(copy), weights="ema").notes[0]


def test_a_folder_that_is_no_base_names_what_lies_in_it(copy: Path, tmp_path: Path) -> None:
    def fix(folder: Path) -> str:
        with pytest.raises(ModelError, match="model_index") as caught:
            load_base(str(folder))
        return str(caught.value.fix)

    assert fix(copy / "unet") == f"Name the whole base, {copy}"
    assert fix(tmp_path) == f"Name what lies in it: {copy}"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "01"
    shutil.copytree(copy, snapshot)
    assert fix(tmp_path / "models--a--b") == f"Name what lies in it: {snapshot}"
    (tmp_path / "files").mkdir()
    for name in ("a.ckpt", "b.safetensors", "c.ckpt", "d.ckpt", "e.txt"):
        (tmp_path / "files" / name).touch()
    assert fix(tmp_path / "files").endswith("c.ckpt or another")
    (tmp_path / "empty").mkdir()
    assert "diffusers layout" in fix(tmp_path / "empty")


def test_a_name_that_is_nearly_one_is_guessed(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("v1-5-pruned.ckpt").touch()
    (tmp_path / "models").mkdir()
    copy.rename("models/sd15")
    for wrong, right in (
        ("v1-5-prund.ckpt", "v1-5-pruned.ckpt"),
        ("v1-5-pruned", "v1-5-pruned.ckpt"),
        ('"v1-5-pruned.ckpt"', "v1-5-pruned.ckpt"),
        ("models\\sd15", "models/sd15"),
        ("./models/sd1.5", "models/sd15"),
    ):
        with pytest.raises(ModelError, match="There is no base") as caught:
            load_base(wrong)
        assert f'Did you mean "{right}"?' in str(caught.value.fix)
    with pytest.raises(ModelError, match="There is no base") as caught:
        load_base("modls/deep/v1.ckpt")
    assert f"There is no folder {Path('modls/deep')} that" in str(caught.value.fix)
    for odd in ("a" * 5000, "~nobody-of-this-name/v1.ckpt", "a\0b"):
        for choice in ({"name": odd}, {"name": "models/sd15", "vae": odd}):
            with pytest.raises(ModelError):
                load_base(**choice)
