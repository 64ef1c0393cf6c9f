from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from lorasmith.bench import compare
from lorasmith.bench.compare import Comparison, bench
from lorasmith.bench.job import Job, Measured
from lorasmith.errors import ModelError, RunError
from lorasmith.events import Event, Progress, Warned

OURS = Measured("lorasmith", "cpu", "bfloat16", 40.0, 4.0, 2e9, 40e9, 300.0)
OTHER = Measured("reference", "cpu", "float32", 40.0, 20.0, 2e9, 20e9, 600.0)


def comparison(other: Measured | None = OTHER, verb: Any = "train") -> Comparison:
    return Comparison(Job(verb), "a machine", "2026-01-02", OURS, other)


def test_the_ratios_and_the_table() -> None:
    found = comparison()
    assert found.faster == pytest.approx(5.0)
    assert found.memory == pytest.approx(0.5)
    rows = {name: cells for name, *cells in found.rows()}
    assert rows["samples/s"] == ["10", "2", "5.00"]
    assert rows["share of the matrix product"] == ["50%", "20%", ""]
    assert rows["peak memory, MiB"] == ["300", "600", "0.50"]
    page = found.markdown()
    assert "| samples/s | 10 | 2 | 5.00 |" in page and "2026-01-02" in page and "a machine" in page
    assert "multiply-add as two" in page
    figures = json.loads(json.dumps(found.to_json()))
    assert figures["ratios"] == {"speed": pytest.approx(5.0), "peak_memory": pytest.approx(0.5)}
    assert [way["way"] for way in figures["ways"]] == ["lorasmith", "reference"]


def test_without_a_reference_the_columns_are_empty() -> None:
    found = comparison(None)
    assert found.faster is None and found.memory is None
    assert all(cells[2:] == ("", "") for cells in found.rows())
    assert len(found.to_json()["ways"]) == 1
    assert found.markdown()


@pytest.mark.parametrize("verb", ["train", "generate", "load"])
def test_the_words_say_what_was_done(verb: str) -> None:
    assert "starter" in comparison(verb=verb).words()


def measuring(answers: dict[str, Measured | Exception]) -> Any:
    def measure(way: str, job: Job) -> Generator[Event, None, Measured]:
        yield Progress(way, 0, 1)
        answer = answers[way]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return measure


def finished(generator: Generator[Event, None, Comparison]) -> tuple[list[Event], Comparison]:
    events: list[Event] = []

    def run() -> Iterator[Event]:
        found.append((yield from generator))

    found: list[Comparison] = []
    events += run()
    return events, found[0]


def test_a_reference_way_that_fails_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = {"ours": OURS, "reference": RunError("reference failed: OSError: no network")}
    monkeypatch.setattr(compare, "measure_in_child", measuring(failing))
    events, found = finished(bench(Job("load")))
    assert found.reference is None
    assert any(isinstance(event, Warned) and "no network" in event.message for event in events)


def test_both_ways_in_turn_or_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "measure_in_child", measuring({"ours": OURS, "reference": OTHER}))
    events, found = finished(bench(Job("train")))
    assert (found.ours, found.reference) == (OURS, OTHER)
    assert [event.stage for event in events if isinstance(event, Progress)] == ["ours", "reference"]
    assert finished(bench(Job("train"), reference=False))[1].reference is None


def test_our_own_failure_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "measure_in_child", measuring({"ours": ModelError("There is no base.")}))
    with pytest.raises(ModelError):
        finished(bench(Job("train")))
