"""One file is enough: with sockets blocked it trains and generates."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from lorasmith.cli.main import run
from lorasmith.starter.paths import starter_folder
from lorasmith.starter.pictures import write_pictures


def test_a_single_file_trains_and_generates_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    assert run(["convert", str(starter_folder()), "base.safetensors"]) == 0
    assert "every weight that was written" in capsys.readouterr().out
    folders = write_pictures(tmp_path / "data", ["trident"], 4, seed=3)
    small = [f"--set={s}" for s in ("train.steps=2", "train.batch=1", "lora.rank=2", "samples.steps=2")]
    assert run(["train", str(folders[0]), "--base", "base.safetensors", "--out", "run", *small]) == 0
    draw = ["--lora", "run/lora.safetensors", "--prompt", "a trident", "--steps", "2", "--out", "pictures"]
    assert run(["generate", "--base", "base.safetensors", *draw]) == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
    assert run(["convert", "base.safetensors", "base.safetensors"]) == 2
    assert "already" in capsys.readouterr().err
