"""``lorasmith inspect`` from the outside: exit codes, JSON, and a screen that no file can spoil."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorasmith.cli.main import run
from lorasmith.starter.paths import starter_folder

PLACE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def lora(path: Path, scale: float = 1.0, metadata: dict[str, str] | None = None) -> Path:
    torch.manual_seed(0)
    state = {
        f"{PLACE}.lora_down.weight": torch.randn(4, 16),
        f"{PLACE}.lora_up.weight": torch.randn(16, 4) * scale,
        f"{PLACE}.alpha": torch.tensor(2.0),
    }
    save_file(state, path, metadata)
    return path


def test_the_starter(capsys: pytest.CaptureFixture[str]) -> None:
    file = starter_folder() / "unet" / "diffusion_pytorch_model.safetensors"
    if not file.is_file():
        pytest.skip("the starter is not built")
    assert run(["inspect", str(starter_folder()), str(file)]) == 0
    text = capsys.readouterr().out
    assert "StableDiffusionPipeline" in text
    assert "SD VAE" in text
    assert "SHA-256" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_lora_and_one_of_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = lora(tmp_path / "good.safetensors", metadata={"ss_sd_model_name": "v1-5-pruned.ckpt"})
    assert run(["inspect", str(good)]) == 0
    text = capsys.readouterr().out
    for words in ("Stable Diffusion 1.x LoRA", "kohya", "to_q (1)", "v1-5-pruned.ckpt", "unet down_blocks.0", "AutoV3"):
        assert words in text
    assert run(["inspect", str(lora(tmp_path / "zero.safetensors", 0.0))]) == 1
    assert "NOTHING" in capsys.readouterr().out
    assert run(["inspect", "--quick", str(tmp_path / "zero.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "SHA-256" not in text
    assert "NOTHING" not in text


def test_json_is_one_object_whatever_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = lora(tmp_path / "good.safetensors")
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(b"<html>")
    assert run(["inspect", "--json", str(good), str(bad), str(tmp_path / "missing")]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert found["format"] == 1
    first, second = (entry["files"][0] for entry in found["inspected"])
    assert first["verdict"] == "safe"
    assert first["architecture"]["name"] == "Stable Diffusion 1.x"
    assert first["lora"]["ranks"] == {"4": 1}
    assert first["lora"]["alphas"] == {"2.0": 1}
    assert not first["lora"]["is_zero"]
    assert len(first["hashes"]["sha256"]) == 64
    assert first["findings"] == []
    assert (second["verdict"], second["lora"]) == ("not supported", None)
    assert "web page" in second["reason"]
    assert "missing" in found["errors"][0]["where"]


def test_unsafe_and_missing_files_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1/0",)

    torch.save({"w": Evil()}, tmp_path / "evil.ckpt")
    assert run(["inspect", str(tmp_path / "evil.ckpt")]) == 2
    text = capsys.readouterr().out
    assert "UNSAFE" in text
    assert "eval" in text
    assert "To do:" in text
    lora(tmp_path / "good.safetensors")
    assert run(["inspect", str(tmp_path)]) == 2
    text = capsys.readouterr().out
    assert "UNSAFE" in text
    assert "good.safetensors" in text
    assert run(["inspect", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert run(["inspect"]) == 2


def test_what_a_stranger_wrote_does_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "\x1b]0;owned\x07[red]x[/red]\u202e"
    state = {f"{nasty}.lora_down.weight": torch.zeros(1, 2), f"{nasty}.lora_up.weight": torch.zeros(2, 2)}
    save_file(state, tmp_path / "x.safetensors", {"modelspec.title": nasty, "modelspec.author": "[bold]me"})
    torch.save({"state_dict": {"w": torch.zeros(2)}, nasty: nasty, f"{nasty}2": [nasty]}, tmp_path / "y.ckpt")
    run(["inspect", str(tmp_path / "x.safetensors"), str(tmp_path / "y.ckpt"), str(tmp_path)])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold]me" in text  # shown as it is written, not as a style
