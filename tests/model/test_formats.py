from __future__ import annotations

import json
import logging
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorasmith.errors import LoraError, OutputError
from lorasmith.generate.sample import Request, sample
from lorasmith.model.formats import read_lora, write_diffusers, write_kohya
from lorasmith.model.lora import Lora, LoraConfig, attach, detach, fuse, lora_state, make_lora
from lorasmith.model.stable_diffusion import StableDiffusion

CASES = [("attention", False), ("attention+ff", True), ("all", False), ("all", True)]


def trained(sd: StableDiffusion, targets: Any = "attention", text_encoder: bool = False) -> Lora:
    """Return a LoRA that changes the picture, with alpha != rank; the base is left without it."""
    config = LoraConfig(rank=4, alpha=6, targets=targets, text_encoder=text_encoder)
    parameters = attach(sd, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        parameter.data.normal_(std=0.15, generator=generator)
    lora = lora_state(sd)
    detach(sd)
    return lora


def ours(sd: StableDiffusion) -> np.ndarray:
    return next(sample(sd, [Request("an axe", "pink", seed=7, steps=5, guidance=3)]))[1]


def stocks(folder: Path, lora: Path) -> np.ndarray:
    """Return the picture of diffusers' own pipeline with its own reading of the file, which must be without a doubt."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    picture = pipeline(
        "an axe",
        negative_prompt="pink",
        num_inference_steps=5,
        guidance_scale=3,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    return (picture * 255).round().astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
@pytest.mark.parametrize(("targets", "text_encoder"), CASES)
def test_stock_diffusers_loads_it_to_the_same_picture(
    tiny_base: Path,
    sd: StableDiffusion,
    tmp_path: Path,
    write: Any,
    targets: str,
    text_encoder: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = ours(sd)
    lora = trained(sd, targets, text_encoder)
    write(lora, tmp_path / "lora.safetensors")
    fuse(sd, lora)
    fused = ours(sd)
    assert difference(fused, base) > 20
    with caplog.at_level(logging.WARNING):
        assert difference(fused, stocks(tiny_base, tmp_path / "lora.safetensors")) <= 2
    assert not [r for r in caplog.records if "unexpected keys" in r.message or "missing keys" in r.message]


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
@pytest.mark.parametrize(("targets", "text_encoder"), CASES)
def test_a_round_trip_is_exact(
    sd: StableDiffusion, tmp_path: Path, write: Any, targets: str, text_encoder: bool
) -> None:
    lora = trained(sd, targets, text_encoder)
    write(lora, tmp_path / "x.safetensors", {"lorasmith.name": "x"})
    back = read_lora(tmp_path / "x.safetensors")
    assert back.tensors.keys() == lora.tensors.keys()
    assert all(torch.equal(back.tensors[key], tensor) for key, tensor in lora.tensors.items())
    assert (back.rank, back.alpha, back.alphas) == (4, 6, {})
    assert back.metadata["lorasmith.name"] == "x"


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_ranks_and_alphas_of_single_modules_are_kept(
    tiny_base: Path, sd: StableDiffusion, tmp_path: Path, write: Any
) -> None:
    lora = trained(sd, "attention", True)
    odd = [lora.modules[0], lora.modules[-1]]
    tensors = dict(lora.tensors)
    for module in odd:
        a, b = lora.pair(module)
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a[:2], b[:, :2]
    mixed = make_lora(tensors, {m: 3.5 if m in odd else 6 for m in lora.modules})
    write(mixed, tmp_path / "lora.safetensors")
    back = read_lora(tmp_path / "lora.safetensors")
    assert back.alphas == dict.fromkeys(odd, 3.5)
    assert back.norms() == mixed.norms()
    fuse(sd, mixed)
    assert difference(ours(sd), stocks(tiny_base, tmp_path / "lora.safetensors")) <= 2


def test_kohya_metadata(sd: StableDiffusion, tmp_path: Path) -> None:
    from safetensors import safe_open

    write_kohya(trained(sd, "all", True), tmp_path / "k.safetensors")
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], float(metadata["ss_network_alpha"])) == ("4", 6.0)
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in keys
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha" in keys
    assert "lora_unet_up_blocks_0_upsamplers_0_conv.lora_up.weight" in keys


def test_reads_what_stock_training_scripts_write(sd: StableDiffusion, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    attach(sd, LoraConfig(rank=4, alpha=4, text_encoder=True), seed=3)
    for parameter in [p for p in sd.unet.parameters() if p.requires_grad]:
        parameter.data.normal_()
    lora = lora_state(sd)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(sd.unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(sd.text_encoder)),
    )
    back = read_lora(tmp_path)
    assert back.tensors.keys() == lora.tensors.keys()
    assert all(torch.equal(back.tensors[key], tensor) for key, tensor in lora.tensors.items())


def test_reads_the_oldest_names(tmp_path: Path) -> None:
    down, up = torch.ones(2, 8), torch.ones(8, 2)
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
    keys = {f"{module}.processor.to_out_lora.down.weight": down, f"{module}.processor.to_out_lora.up.weight": up}
    save_file(keys, tmp_path / "old.safetensors")
    lora = read_lora(tmp_path / "old.safetensors")
    assert lora.modules == (f"{module}.to_out.0",)
    assert lora.scale(lora.modules[0]) == 1


def test_not_finite_is_refused_both_ways(sd: StableDiffusion, tmp_path: Path) -> None:
    lora = trained(sd)
    path = tmp_path / "x.safetensors"
    write_diffusers(lora, path)
    tensors = load_file(path)
    key = next(iter(tensors))
    tensors[key][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(LoraError, match="not finite") as caught:
        read_lora(path)
    assert key in caught.value.what
    before = path.read_bytes()
    with pytest.raises(LoraError, match="not finite"):
        write_diffusers(make_lora(tensors, {}), path)
    assert path.read_bytes() == before


class _Canary:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary-that-must-not-exist"),)


def test_other_files_are_refused_by_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"unet.a.lora_A.weight": torch.ones(1, 2), "unet.a.lora_B.weight": torch.ones(2, 1)}
    save_file(good, "good.safetensors")
    data = Path("good.safetensors").read_bytes()
    header = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    torch.save({"x": _Canary()}, "zip")
    cases = {
        "pickle": [pickle.dumps(_Canary()), Path("zip").read_bytes()],
        "git-lfs": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"],
        "web page": [b"<!DOCTYPE html><html></html>"],
        "cut off": [b"", data[:7], struct.pack("<Q", 10**9) + data[8:]],
        "damaged": [data[:-4], struct.pack("<Q", len(header)) + header + bytes(4), struct.pack("<Q", 4) + b"[[[["],
        "occurs twice": [struct.pack("<Q", len(header)) + header + bytes(4)],
    }
    for word, contents in cases.items():
        for content in contents:
            Path("x.safetensors").write_bytes(content)
            with pytest.raises(LoraError, match=word):
                read_lora(Path("x.safetensors"))
    assert not Path("canary-that-must-not-exist").exists()
    with pytest.raises(LoraError, match="no LoRA file"):
        read_lora(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.diffusion_model.out.2.weight": torch.ones(4, 4)},
        {"lora_unet_x.hada_w1_a": torch.ones(4, 4)},
        {"unet.a.lora_A.weight": torch.ones(1, 2)},
        {
            "unet.a.lora_A.weight": torch.ones(1, 2),
            "unet.a.lora_B.weight": torch.ones(2, 1),
            "unet.a.dora_scale": torch.ones(2),
        },
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(LoraError, match="not a LoRA that lorasmith reads"):
        read_lora(tmp_path / "x.safetensors")


def test_damaged_adapter_metadata_is_refused(tmp_path: Path) -> None:
    tensors = {"unet.a.lora_A.weight": torch.ones(1, 2), "unet.a.lora_B.weight": torch.ones(2, 1)}
    for text in ("{", "[]", json.dumps({"unet.lora_alpha": "many"})):
        save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
        if text != "[]":
            with pytest.raises(LoraError, match="metadata is damaged"):
                read_lora(tmp_path / "x.safetensors")


def test_an_unwritable_folder_is_named(sd: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_diffusers(trained(sd), tmp_path / "file" / "lora.safetensors")


def test_a_cut_file_is_not_taken_for_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes((0x1280).to_bytes(8, "little") + b'{"a": ')  # begins with a byte that pickles begin with
    with pytest.raises(LoraError, match="cut off"):
        read_lora(path)
