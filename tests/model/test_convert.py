from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorasmith.errors import LorasmithError, ModelError, OutputError
from lorasmith.events import Finished, Note, Progress
from lorasmith.generate.sample import Request, sample
from lorasmith.model.convert import convert
from lorasmith.model.find_base import find_base
from lorasmith.model.stable_diffusion import load_base
from lorasmith.starter.paths import starter_folder

from .sd1_like import ema_of, write_folder


def converted(base: str | Path, out: Path, dtype: torch.dtype | None = None, **choices: object) -> Path:
    events = list(convert(find_base(str(base), **choices), out, dtype))  # type: ignore[arg-type]
    assert isinstance(events[-1], Finished)
    assert any(isinstance(e, Note) and e.message.startswith("Checked") for e in events)
    bars = [e for e in events if isinstance(e, Progress) and e.stage == "writing"]
    assert bars[0].done == 0
    assert bars[-1].done == bars[-1].total
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("sd1-like"))


def test_there_and_back_is_bit_identical(folder: Path, tmp_path: Path) -> None:
    file = converted(folder, tmp_path / "a.safetensors")
    back = converted(file, tmp_path / "b")
    again = converted(back, tmp_path / "c.safetensors")
    assert file.read_bytes() == again.read_bytes()
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        first, last = (load_file(f / part / f"{name}.safetensors") for f in (folder, back))
        first = {k if k.startswith("text_model.") or part != "text_encoder" else f"text_model.{k}": v
                 for k, v in first.items() if not k.endswith("position_ids")}  # fmt: skip
        assert first.keys() == last.keys()
        assert all(torch.equal(first[k], last[k]) and first[k].dtype == last[k].dtype for k in first)


def test_the_starter_there_and_back_draws_the_same_picture(tmp_path: Path) -> None:
    file = converted(starter_folder(), tmp_path / "starter.safetensors")
    back = converted(file, tmp_path / "starter")
    request = Request("a red axe on a wooden table", seed=5, steps=4)
    pictures = [next(sample(load_base(str(base)), [request]))[1] for base in ("starter", file, back)]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()


def test_stock_diffusers_loads_the_folder(folder: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    out = converted(converted(folder, tmp_path / "a.safetensors"), tmp_path / "b")
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    ours = load_base(str(folder))
    for part in ("unet", "vae", "text_encoder"):
        theirs = dict(getattr(pipeline, part).named_parameters())
        assert all(torch.equal(theirs[n], p) for n, p in getattr(ours, part).named_parameters())
    assert pipeline.tokenizer("a photo").input_ids == ours.tokenizer("a photo").input_ids


def test_stock_diffusers_reads_the_file(folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    file = converted(folder, tmp_path / "a.safetensors")
    ours = load_base(str(folder))
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        theirs = kind.from_single_file(str(file), config=str(folder), subfolder=part, local_files_only=True)
        own = dict(getattr(ours, part).named_parameters())
        assert all(torch.equal(own[n], p) for n, p in theirs.named_parameters())


def test_precision_and_average_are_chosen(folder: Path, tmp_path: Path) -> None:
    file = converted(folder, tmp_path / "a.safetensors", torch.float16)
    full = load_file(converted(folder, tmp_path / "full.safetensors"))
    half = load_file(file)
    assert {t.dtype for t in half.values()} == {torch.float16}
    assert all(torch.equal(half[k], full[k].half()) for k in full)
    both = tmp_path / "both.ckpt"
    torch.save({"state_dict": full | ema_of(full)}, both)
    averaged = load_file(converted(both, tmp_path / "ema.safetensors", weights="ema"))
    assert averaged.keys() == full.keys()
    name = "model.diffusion_model.out.2.bias"
    assert torch.equal(averaged[name], full[name] + 0.01)
    assert load_file(converted(both, tmp_path / "own.safetensors"))[name].equal(full[name])


def test_another_vae_goes_in(folder: Path, tmp_path: Path) -> None:
    own = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({k: v + 1 for k, v in own.items()}, tmp_path / "vae.safetensors")
    file = converted(folder, tmp_path / "a.safetensors", vae=str(tmp_path / "vae.safetensors"))
    assert load_file(file)["first_stage_model.quant_conv.bias"].equal(own["quant_conv.bias"] + 1)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    for base, out, kind, word in (
        (folder, "there", OutputError, "already"),
        (folder, "a.ckpt", OutputError, "Pickles are not written"),
        (tiny_base, "a.safetensors", ModelError, "tokenizer of its own"),
    ):
        with pytest.raises(kind, match=word):
            list(convert(find_base(str(base)), tmp_path / out))
    full = load_file(converted(folder, tmp_path / "full.safetensors"))
    full["model.diffusion_model.out.2.bias"][0] = 1e9
    full["first_stage_model.quant_conv.bias"][0] = float("inf")
    torch.save(full, tmp_path / "bad.ckpt")
    bad = find_base(str(tmp_path / "bad.ckpt"))
    for out in ("b", "b.safetensors"):
        for dtype, word in ((None, "infinite"), (torch.float16, "too large|infinite")):
            with pytest.raises(ModelError, match=word):
                list(convert(bad, tmp_path / out, dtype))
    from lorasmith.model import convert as module

    monkeypatch.setattr(module, "_write_scheduler", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(LorasmithError, match="No space left"):
        list(convert(find_base(str(folder)), tmp_path / "c"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ckpt", "full.safetensors", "there"]


def test_a_base_without_a_tokenizer_of_clips_stays_a_folder(tiny_base: Path, tmp_path: Path) -> None:
    out = converted(tiny_base, tmp_path / "copy", torch.bfloat16)
    a, b = load_base(str(tiny_base), dtype=torch.bfloat16), load_base(str(out), dtype=torch.bfloat16)
    assert all(torch.equal(p, q) for p, q in zip(a.unet.parameters(), b.unet.parameters()))
    assert b.scheduler_config["beta_schedule"] == "scaled_linear"
