"""What is said of files agrees with what is in them, for honest and for dishonest ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lorasmith.errors import ModelError
from lorasmith.events import Progress
from lorasmith.model import weight_checks
from lorasmith.model.checkpoint_file import Checkpoint
from lorasmith.model.file_facts import hash_file, pickle_globals, printable, stated
from lorasmith.model.file_report import FileReport, Report
from lorasmith.model.formats import read_lora, write_diffusers, write_kohya
from lorasmith.model.inspection import Options, inspect
from lorasmith.model.lora import LoraConfig, attach, lora_state
from lorasmith.model.stable_diffusion import StableDiffusion

from . import hostile
from .test_architecture_names import UNET, original, unet

Steps = Generator[Progress, None, Any]


def run(steps: Steps) -> tuple[Any, list[Progress]]:
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return end.value, events


def look(path: Path, **options: bool) -> FileReport:
    report: Report = run(inspect(path, Options(**options)))[0]
    assert len(report.files) == 1
    json.dumps(report.to_json(), allow_nan=False)
    return report.files[0]


def weights() -> dict[str, Tensor]:
    """A base of SD 1.x in miniature, in the original layout, with text encoder, VAE and what else such files hold."""
    torch.manual_seed(0)
    state = {name: torch.randn(shape).half() for name, shape in original(unet({})).items()}
    state["first_stage_model.decoder.conv_in.weight"] = torch.randn(8, 4, 3, 3)
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"] = torch.randn(9, 64)
    state["betas"] = torch.linspace(0, 1, 10)
    return state


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor.float() * 1.25
        for name, tensor in state.items()
        if name.startswith("model.")
    }
    return found | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def test_a_checkpoint_with_a_moving_average(tmp_path: Path) -> None:
    state = weights()
    beside = {"epoch": 3, "global_step": 470000, "optimizer_states": [{"state": {}}]}
    torch.save({"state_dict": {**state, **averaged(state)}, **beside}, tmp_path / "v1.ckpt")
    found = look(tmp_path / "v1.ckpt")
    assert found.verdict == "safe"
    assert found.container == "torch zip"
    assert found.architecture.is_base
    parts = {part.name: part for part in found.parts}
    count = sum(name.startswith(UNET) for name in state)
    numbers = sum(tensor.numel() for name, tensor in state.items() if name.startswith(UNET))
    assert set(parts) == {"unet", "vae", "text encoder", "ema", "other"}
    assert (parts["unet"].tensors, parts["unet"].parameters) == (count, numbers)
    assert parts["unet"].dtypes == {"float16": count}
    assert parts["unet"].bytes == 2 * numbers
    assert (parts["ema"].tensors, parts["ema"].parameters) == (count, numbers)
    assert parts["text encoder"].parameters == 9 * 64  # position_ids are no parameters
    assert parts["text encoder"].dtypes == {"int64": 1, "float32": 1}
    assert found.ema is not None
    assert (found.ema.tensors, found.ema.weights, found.ema.missing, found.ema.unknown) == (count, count, (), ())
    assert found.ema.distance == pytest.approx(0.25, rel=1e-4)
    assert (found.ema.decay, found.ema.updates) == (pytest.approx(0.9999), 7)
    assert found.scalars == {"epoch": 3, "global_step": 470000}
    assert found.left_out == ("optimizer_states",)
    assert "torch._utils._rebuild_tensor_v2" in found.pickle_globals
    assert found.findings == ()


def test_a_moving_average_with_holes_is_named(tmp_path: Path) -> None:
    state = weights()
    ema = averaged(state)
    gone = f"{UNET}input_blocks.0.0.weight"
    del ema["model_ema.diffusion_modelinput_blocks00weight"]
    ema["model_ema.something"] = torch.zeros(3)
    save_file({**state, **ema}, tmp_path / "v1.safetensors")
    found = look(tmp_path / "v1.safetensors")
    assert found.ema is not None
    assert found.ema.missing == (gone,)
    assert found.ema.unknown == ("model_ema.something",)
    assert any(gone in finding for finding in found.findings)
    only = look_at(tmp_path / "ema.safetensors", averaged(state))
    assert only.ema is not None
    assert (only.ema.weights, only.ema.distance, only.findings) == (0, None, ())
    assert only.architecture.parts == ("ema",)


def look_at(
    path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None, **options: bool
) -> FileReport:
    save_file(state, path, metadata)
    return look(path, **options)


def test_hashes_are_those_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.randn(600, 600)}, path, {"a": "b"})
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    hashes, _ = run(hash_file(path))
    assert hashes.sha256 == hashlib.sha256(data).hexdigest()
    assert hashes.autov2 == hashes.sha256[:10]
    assert hashes.autov1 == hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert hashes.weights == hashlib.sha256(data[start:]).hexdigest()
    assert hashes.autov3 == hashes.weights[:12]
    save_file({"w": torch.zeros(3)}, path)
    small, _ = run(hash_file(path, weights_alone=False))
    assert (small.autov1, small.weights) == ("", "")


def test_a_header_longer_than_a_block_is_left_out_of_the_weights_hash(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.randn(9)}, path, {"tags": "x" * (3 << 20)})
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert run(hash_file(path))[0].weights == hashlib.sha256(data[start:]).hexdigest()


def test_weights_that_are_not_those_saved_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(9)}, path)
    own = run(hash_file(path))[0].weights
    assert look_at(path, {"w": torch.ones(9)}, {"sshs_model_hash": own}).findings == ()
    assert look_at(path, {"w": torch.ones(9)}, {"modelspec.hash_sha256": f"0x{own}"}).findings == ()
    assert "hash" in look_at(path, {"w": torch.zeros(9)}, {"sshs_model_hash": own}).findings[0]


@pytest.fixture
def lora_files(sd: StableDiffusion, tmp_path: Path) -> dict[str, Path]:
    """The same LoRA, with alphas unlike its ranks, in both formats and as a pickle; and one that is not trained."""
    config = LoraConfig(rank=3, alpha=7.5, targets="all", text_encoder=True)
    parameters = attach(sd, config)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("zero", "peft", "kohya")}
    write_diffusers(lora_state(sd), files["zero"])
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        parameter.data.normal_(std=0.2, generator=generator)
    lora = lora_state(sd)
    other = next(module for module in lora.modules if module.endswith("ff.net.2"))
    lora.alphas[other] = 1.25
    write_diffusers(lora, files["peft"], {"lorasmith": "0.1", "steps": "400"})
    write_kohya(lora, files["kohya"])
    files["pickle"] = tmp_path / "lora.bin"
    torch.save(lora.tensors, files["pickle"])
    return files


@pytest.mark.parametrize("name", ["peft", "kohya"])
def test_norms_are_those_of_the_lora_that_is_used(lora_files: dict[str, Path], name: str) -> None:
    lora, found = read_lora(lora_files[name]), look(lora_files[name])
    assert found.lora is not None
    assert str(found.architecture) == "Stable Diffusion 1.x LoRA"
    assert found.architecture.layout == name
    norms = lora.norms()
    assert found.lora.modules == len(norms)
    assert found.lora.norm == pytest.approx(torch.tensor(list(norms.values())).double().norm().item(), rel=1e-6)
    blocks = {block.block: block for block in found.lora.blocks}
    middle = [norm for module, norm in norms.items() if module.startswith("unet.mid_block.")]
    assert blocks["unet mid_block"].modules == len(middle)
    assert blocks["unet mid_block"].largest == pytest.approx(max(middle), rel=1e-6)
    text = [norm for module, norm in norms.items() if module.startswith("text_encoder.")]
    assert blocks["text encoder"].norm == pytest.approx(torch.tensor(text).double().norm().item(), rel=1e-6)
    assert {"unet down_blocks.1", "unet up_blocks.0"} <= blocks.keys()
    assert sum(block.modules for block in blocks.values()) == len(norms)
    assert found.lora.ranks == {3: len(norms)}
    assert found.lora.alphas == {7.5: len(norms) - 1, 1.25: 1}
    assert found.lora.alpha_stated
    assert set(found.lora.targets) == set(lora.targets)
    assert found.lora.recipe_targets == "all"
    assert not found.findings


def test_a_lora_in_a_pickle_and_one_of_zeros(lora_files: dict[str, Path]) -> None:
    pickled = look(lora_files["pickle"])
    assert pickled.lora is not None
    assert pickled.lora.norm > 0
    assert not pickled.lora.alpha_stated
    zero = look(lora_files["zero"])
    assert zero.lora is not None
    assert zero.lora.is_zero
    assert "all zeros" in zero.findings[0]
    assert look(lora_files["zero"], compare=False).lora is None


def test_old_attention_processors_and_mended_layers(tmp_path: Path) -> None:
    place = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    a, b = torch.randn(2, 8), torch.randn(6, 2)
    state = {f"{place}.to_q_lora.down.weight": a, f"{place}.to_q_lora.up.weight": b}
    found = look_at(tmp_path / "old.safetensors", state).lora
    assert found is not None
    assert found.norm == pytest.approx(float((b @ a).norm()), rel=1e-5)
    assert found.targets == {"to_q": 1}
    nan = look_at(tmp_path / "nan.safetensors", {**state, f"{place}.to_q_lora.up.weight": b * torch.nan})
    half = look_at(tmp_path / "half.safetensors", {**state, f"{place}.to_k_lora.down.weight": a.clone()})
    misfit = look_at(tmp_path / "misfit.safetensors", {**state, f"{place}.to_q_lora.up.weight": b[:, :1].contiguous()})
    for broken in (nan, half, misfit):
        assert broken.lora is not None
        assert len(broken.lora.broken) == 1
        assert "not finite" in broken.findings[-1]


def test_a_lora_whose_rank_is_a_lie_takes_no_memory_for_it(tmp_path: Path) -> None:
    a, b = torch.ones(20_000, 1), torch.ones(1, 20_000)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    found = look_at(tmp_path / "x.safetensors", {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b})
    assert found.lora is not None
    assert found.lora.norm == pytest.approx(20_000, rel=1e-6)


def test_weights_that_are_not_finite_are_found_when_asked(tmp_path: Path) -> None:
    state = {"a": torch.ones(9), "b": torch.tensor([1.0, torch.nan, torch.inf])}
    assert look_at(tmp_path / "x.safetensors", state).not_finite is None
    found = look_at(tmp_path / "x.safetensors", state, check_weights=True)
    assert found.not_finite == {"b": 2}
    assert "b (2)" in found.findings[0]


def test_a_hostile_pickle_is_told_and_not_run(tmp_path: Path) -> None:
    path, canary = tmp_path / "evil.ckpt", tmp_path / "canary"
    pickled = hostile.PROTO + hostile.called(hostile.name("os", "system"), hostile.text(f"touch {canary}")) + b"."
    path.write_bytes(bytes(hostile.zip_file(hostile.checkpoint_entries(pickled))))
    before = path.read_bytes()
    found = look(path)
    assert found.verdict == "unsafe"
    assert "os.system" in found.reason
    assert "data.pkl" in found.place
    assert found.pickle_globals == ("os.system",)
    assert found.hashes is not None
    assert not canary.exists()
    assert path.read_bytes() == before


def test_names_put_together_on_the_stack_are_listed(tmp_path: Path) -> None:
    for protocol in (2, 4):
        torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt", pickle_protocol=protocol)
        names = pickle_globals(tmp_path / "w.pt")
        assert {"torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict"} == set(names)
    torch.save({"w": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "torch.FloatStorage" in pickle_globals(tmp_path / "old.pt")


@pytest.mark.parametrize("number", range(0, 2000, 97))
def test_listing_names_survives_anything(tmp_path: Path, number: int) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=bool(number % 2))
    data = bytearray((tmp_path / "w.pt").read_bytes())
    data[number % len(data)] ^= 0x5A
    (tmp_path / "w.pt").write_bytes(bytes(data[: len(data) - number % 7]))
    assert isinstance(pickle_globals(tmp_path / "w.pt"), tuple)
    look(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("data", "verdict", "words"),
    [
        (b"", "damaged", "empty"),
        (b"<!DOCTYPE html><html>login</html>" * 9, "not supported", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not supported", "git-lfs"),
        (b"\x40\0\0\0\0\0\0\0{" + b" " * 20, "damaged", "cut off"),
    ],
)
def test_what_is_no_file_of_weights_is_told(tmp_path: Path, data: bytes, verdict: str, words: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    found = look(tmp_path / "x.safetensors")
    assert found.verdict == verdict
    assert words in found.reason
    assert found.fix


def test_embeddings_and_hypernetworks_of_automatic1111_are_named(tmp_path: Path) -> None:
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 768)}, "name": "x"}, tmp_path / "e.pt"
    )
    torch.save({768: ({"linear.0.weight": torch.zeros(2, 2)},), "layer_structure": [1, 2, 1]}, tmp_path / "h.pt")
    assert look(tmp_path / "e.pt").architecture.kind == "embedding"
    assert look(tmp_path / "h.pt").architecture.kind == "hypernetwork"


def test_folders(tiny_base: Path, tmp_path: Path) -> None:
    report: Report = run(inspect(tiny_base, Options()))[0]
    assert report.pipeline == "StableDiffusionPipeline"
    assert report.settings["prediction_type"] == "epsilon"
    assert [(file.folder_part, file.architecture.kind) for file in report.files] == [
        ("unet", "unet"), ("vae", "vae"), ("text_encoder", "text encoder"),
    ]  # fmt: skip
    assert all(file.architecture.supported and file.verdict == "safe" for file in report.files)
    with pytest.raises(ModelError, match="no file of weights"):
        run(inspect(tmp_path, Options()))
    with pytest.raises(ModelError, match="cannot be read"):
        run(inspect(tmp_path / "missing.ckpt", Options()))


def test_pieces_of_one_model_are_understood_together(tmp_path: Path) -> None:
    shapes = unet({})
    names = list(shapes)
    for number, piece in enumerate((names[:5], names[5:])):
        path = tmp_path / f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"
        save_file({name: torch.zeros(shapes[name]) for name in piece}, path)
    report: Report = run(inspect(tmp_path, Options(hashes=False)))[0]
    assert [str(file.architecture) for file in report.files] == ["Stable Diffusion 1.x UNet"] * 2
    assert sum(part.tensors for file in report.files for part in file.parts) == len(names)


def test_what_files_say_of_themselves() -> None:
    said = stated(
        {
            "ss_sd_model_name": "v1-5-pruned.ckpt",
            "ss_network_dim": "16",
            "ss_learning_rate": "None",
            "ss_training_started_at": "1700000000.5",
            "ss_training_finished_at": "9" * 400,
            "ss_dataset_dirs": json.dumps({"10_axe": {"n_repeats": 10, "img_count": 99}, "x": 3}),
            "ss_tag_frequency": json.dumps({"10_axe": {"axe": 99, " pink": 5}, "20_axe": {"axe": 1, "y": "no"}}),
            "modelspec.title": "\x1b[31mred\nAxe\u202e",
            "modelspec.thumbnail": "data:" + "x" * 9999,
        }
    )
    assert said["trained on"] == "v1-5-pruned.ckpt"
    assert said["rank"] == "16"
    assert "learning rate" not in said
    assert said["training began"] == "2023-11-14 22:13 UTC"
    assert "training ended" not in said
    assert said["folders"] == "10_axe (99 pictures x 10)"
    assert said["commonest tags"] == "axe (100), pink (5); 2 in all"
    assert said["title"] == "[31mred Axe"
    assert stated({"ss_tag_frequency": "[" * 9000, "ss_dataset_dirs": '{"a": '}) == {}
    assert printable("é" * 300, 10) == "ééééééé..."


def test_progress_tells_how_far_large_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_checks, "_LARGE", 1)
    state = {f"{UNET}input_blocks.{n}.0.weight": torch.zeros(1 << 20) for n in range(8)}
    save_file({**state, **averaged(state)}, tmp_path / "x.safetensors")
    _, events = run(inspect(tmp_path / "x.safetensors", Options(hashes=False, check_weights=True)))
    for stage in {event.stage for event in events}:
        done = [event.done for event in events if event.stage == stage]
        assert done[0] == 0
        assert done == sorted(done)
        assert done[-1] == next(event.total for event in events if event.stage == stage)
    assert len({event.stage for event in events}) == 2
    with (tmp_path / "big.bin").open("wb") as stream:
        stream.truncate(80 << 20)
    _, events = run(hash_file(tmp_path / "big.bin"))
    assert [event.done for event in events] == [0, 16, 32, 48, 64, 80]


def test_no_more_than_two_tensors_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = weights()
    save_file({**state, **averaged(state)}, tmp_path / "x.safetensors")
    read_so_far: list[StorageWeakRef] = []
    most = 0
    read = Checkpoint.read

    def counted(self: Checkpoint, name: str) -> Tensor:
        nonlocal most
        tensor = read(self, name)
        read_so_far.append(StorageWeakRef(tensor.untyped_storage()))
        most = max(most, sum(not storage.expired() for storage in read_so_far))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", counted)
    look(tmp_path / "x.safetensors", check_weights=True)
    assert len(read_so_far) > 1000
    assert most == 2
