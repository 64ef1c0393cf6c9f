from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from lorasmith.bench import compare
from lorasmith.bench.job import Job, Measured, Ready
from lorasmith.cli.main import run
from lorasmith.events import Event, Progress

asked: list[tuple[str, Job]] = []


class FakeWay:
    def __init__(self, name: str, job: Job) -> None:
        self.name = name
        asked.append((name, job))

    def prepare(self) -> Generator[Event, None, Ready]:
        yield Progress(self.name, 0, 1)
        return Ready(0.1, 1.0, 10.0)

    def work(self, steps: int) -> Iterator[Event]:
        yield Progress(self.name, 1, 1)

    def finish(self) -> Generator[Event, None, Measured]:
        yield Progress(self.name, 1, 1)
        return Measured(self.name, "cpu", "float32", 8.0, 2.0 if self.name == "ours" else 4.0, 1e9, 1e10, 100.0)

    def close(self) -> None:
        pass


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked.clear()
    monkeypatch.setattr(compare, "Way", FakeWay)


@pytest.mark.usefixtures("measured")
def test_the_table_and_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base", "b", "--size", "64", "--batch", "3", "--steps", "5", "--rank", "7", "--device", "cpu"]
    assert run(["bench", "train", *arguments, "--precision", "bf16"]) == 0
    text = capsys.readouterr().out
    assert "samples/s" in text and "2.00 times as fast" in text
    assert asked == [(way, Job("train", "b", 64, 3, 5, 7, "cpu", "bf16")) for way in ("ours", "reference")]


@pytest.mark.usefixtures("measured")
def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "load", "--json", "--no-reference"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["job"]["steps"] == 3 and figures["ratios"]["speed"] is None
    assert [way for way, _ in asked] == ["ours"]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", ["speed.md", "speed.json"])
def test_the_result_is_written_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / name
    assert run(["bench", "generate", "--out", str(out)]) == 0
    content = out.read_text(encoding="utf-8")
    assert "pictures/s" in content
    if name.endswith("json"):
        assert json.loads(content)["ratios"]["speed"] == pytest.approx(2.0)
    asked.clear()
    assert run(["bench", "generate", "--out", str(out)]) == 2
    assert asked == [] and "already" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == content


@pytest.mark.usefixtures("measured")
def test_another_suffix_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "train", "--out", "speed.txt"]) == 2
    assert asked == [] and ".md or .json" in capsys.readouterr().err


def test_what_fails_in_the_child_is_said_as_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "load", "--base", "no/such/folder", "--device", "cpu", "--no-reference"]) == 2
    text = capsys.readouterr().err
    assert "no/such/folder" in text and "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "generate", "load"])
def test_the_whole_of_it_on_a_base_in_miniature(verb: str, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", verb, "--base", str(tiny_base), "--steps", "2", "--device", "cpu", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["ratios"]["speed"] > 0 and figures["ratios"]["peak_memory"] > 0
    assert [way["way"] for way in figures["ways"]] == ["lorasmith", "reference"]
