from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_vs_stock.py"


def test_both_ways_train_the_same_adapter_and_ours_is_faster(tiny_base: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--base", str(tiny_base), "--steps", "12", "--device", "cpu", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert answer.returncode == 0, answer.stderr
    figures = json.loads(answer.stdout)
    stock, ours = figures["results"]
    assert stock["parameters"] == ours["parameters"] > 0
    assert figures["ratio_steady"] == pytest.approx(ours["steady"] / stock["steady"])
    assert ours["caching_seconds"] > 0
    assert figures["ratio_steady"] > 1


def test_a_base_that_is_not_there_is_said_without_a_traceback() -> None:
    command = [sys.executable, str(SCRIPT), "--base", "no/such/folder", "--device", "cpu"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert answer.returncode == 1
    assert "no/such/folder" in answer.stderr
    assert "Traceback" not in answer.stderr
