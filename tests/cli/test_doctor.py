"""The doctor finds what is wrong, and never hangs."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorasmith.cli import doctor
from lorasmith.cli.doctor import Check, Gpu
from lorasmith.cli.main import run


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_json_lists_every_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    code = run(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    names = {check["name"] for check in report["checks"]}
    assert {"python", "packages", "torch", "memory", "disk", "cache", "starter", "judge", "network"} <= names
    assert report["ok"] == (code == 0)
    assert all(check["fix"] for check in report["checks"] if check["status"] == "problem")
    assert not any("the check failed" in check["detail"] for check in report["checks"])


def test_a_problem_is_code_1_and_comes_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("python", "ok", "3.11"), Check("disk", "problem", "full", "Free some space.")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    assert run(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "to do: Free some space." in text
    assert "1 problem found." in text
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks[:1]))
    assert run(["doctor"]) == 0


def test_a_cpu_build_of_torch_beside_an_nvidia_card_is_a_problem() -> None:
    check = doctor.torch_build("2.13.0+cpu", None, has_gpu=True)
    assert check.status == "problem"
    assert "--index-url" in check.fix
    assert doctor.torch_build("2.13.0+cpu", None, has_gpu=False).status == "ok"
    assert doctor.torch_build("2.13.0+cu130", "13.0", has_gpu=True).status == "ok"


def test_a_check_that_fails_is_a_problem_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Check]:
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "_memory", broken)
    checks = {check.name: check for check in doctor.examine()}
    assert checks["broken"].status == "problem"
    assert "disk" in checks


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "nvidia-smi")
    answer = "NVIDIA GeForce RTX 4060, 560.94, 8188\nNVIDIA GB10, 580.1, [N/A]\n"

    class Done:
        stdout = answer

    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: Done())
    assert doctor.nvidia_gpus() == [Gpu("NVIDIA GeForce RTX 4060", "560.94", 8188), Gpu("NVIDIA GB10", "580.1", 0)]

    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("subprocess.run", missing)
    assert doctor.nvidia_gpus() == []


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "file" / "cache"))
    checks = list(doctor._cache())
    assert checks[0].status == "problem"
    assert "LORASMITH_CACHE" in checks[0].fix


def test_the_network_check_never_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    assert doctor.within(0.05, lambda: time.sleep(5) or None) == "no answer within 0 s"
    assert time.monotonic() - began < 2
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def unreachable(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    (check,) = doctor._network()
    assert check.status == "note"
    assert "Name or service not known" in check.detail
