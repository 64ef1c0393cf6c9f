from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from lorasmith.bench import compare
from lorasmith.bench.compare import Comparison, bench
from lorasmith.bench.job import Job, Measured, Ready
from lorasmith.errors import ModelError, RunError
from lorasmith.events import Event, Note, Progress, Warned

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


class FakeWay:
    """A way that takes a second of a pretended clock for each step, of which ``slow`` has more."""

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.steps, self.closed = name, 0, False
        self.answer = ANSWERS[name]
        WAYS.append(self)

    def prepare(self) -> Generator[Event, None, Ready]:
        yield Progress(self.name, 0, 1)
        self._fail("prepare")
        return Ready(SLOW[self.name], 100.0, FREE)

    def work(self, steps: int) -> Generator[Event, None, None]:
        yield from ()
        self._fail("work")
        self.steps += steps
        TURNS.append((self.name, steps))
        NOW[0] += SLOW[self.name] * steps

    def finish(self) -> Generator[Event, None, Measured]:
        yield from ()
        self._fail("finish")
        assert isinstance(self.answer, Measured)
        return self.answer

    def close(self) -> None:
        self.closed = True

    def _fail(self, when: str) -> None:
        if isinstance(self.answer, tuple) and self.answer[0] == when:
            raise self.answer[1]


WAYS: list[FakeWay] = []
TURNS: list[tuple[str, int]] = []
ANSWERS: dict[str, Any] = {}
SLOW: dict[str, float] = {}
NOW = [0.0]
FREE = 1000.0


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    WAYS.clear()
    TURNS.clear()
    ANSWERS.update(ours=OURS, reference=OTHER)
    SLOW.update(ours=0.1, reference=0.5)
    NOW[0] = 0.0
    monkeypatch.setattr(compare, "Way", FakeWay)
    monkeypatch.setattr(compare.time, "perf_counter", lambda: NOW[0])
    yield
    assert all(way.closed for way in WAYS)


def finished(generator: Generator[Event, None, Comparison]) -> tuple[list[Event], Comparison]:
    events: list[Event] = []

    def run() -> Iterator[Event]:
        found.append((yield from generator))

    found: list[Comparison] = []
    events += run()
    return events, found[0]


def test_both_take_turns_on_the_same_number_of_steps() -> None:
    _, found = finished(bench(Job("train")))
    assert TURNS == [("ours", 2), ("reference", 2)] * 5
    assert (found.ours, found.reference, found.turn, found.job.steps) == (OURS, OTHER, 2, 10)
    assert "turns of 2 steps" in found.markdown()


def test_turns_are_of_one_step_where_a_step_is_long() -> None:
    SLOW["reference"] = 30.0
    finished(bench(Job("train", steps=3)))
    assert TURNS == [("ours", 1), ("reference", 1)] * 3


def test_fewer_steps_where_the_time_does_not_suffice() -> None:
    SLOW.update(ours=30.0, reference=80.0)
    _, found = finished(bench(Job("train"), seconds=360.0))
    assert [way.steps for way in WAYS] == [3, 3] and found.job.steps == 3  # a fourth would end after 440 s
    assert "--steps 3" in found.command() and "3 steps of 4" in found.words()
    TURNS.clear()
    finished(bench(Job("train"), seconds=1.0))
    assert TURNS == [("ours", 1), ("reference", 1)] * 2


def test_one_after_the_other_where_the_memory_does_not_suffice_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FREE", 99.0)
    SLOW["ours"] = 30.0
    events, found = finished(bench(Job("train"), seconds=400.0))
    assert any(isinstance(event, Note) and "memory" in event.message for event in events)
    assert TURNS == [("ours", 1)] * 3 + [("reference", 3)]  # a quarter of the time is ours
    assert found.reference == OTHER and found.turn == 0 and "One came after the other" in found.markdown()


def test_pictures_are_drawn_in_one_piece() -> None:
    _, found = finished(bench(Job("generate", steps=25), seconds=1.0))
    assert TURNS == [("ours", 1), ("reference", 1)] and found.job.steps == 25 and found.turn == 0


def test_ours_alone() -> None:
    _, found = finished(bench(Job("train"), reference=False))
    assert [way.name for way in WAYS] == ["ours"] and found.reference is None and found.turn == 0
    assert found.command().endswith("--no-reference")


@pytest.mark.parametrize("verb", ["train", "generate"])
@pytest.mark.parametrize("when", ["prepare", "work", "finish"])
def test_a_reference_way_that_fails_is_warned_about(verb: Any, when: str) -> None:
    ANSWERS["reference"] = (when, RunError("reference failed: OSError: no network"))
    events, found = finished(bench(Job(verb)))
    assert found.reference is None and found.ours == OURS and found.turn == 0
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert len(warnings) == 1 and "no network" in warnings[0]
    assert WAYS[0].steps == (10 if verb == "train" else 1)


@pytest.mark.parametrize("when", ["prepare", "work", "finish"])
def test_our_own_failure_is_raised(when: str) -> None:
    ANSWERS["ours"] = (when, ModelError("There is no base."))
    with pytest.raises(ModelError):
        finished(bench(Job("train")))


def test_the_command_is_one_that_can_be_pasted() -> None:
    found = Comparison(Job("train", "my models/sd15", size=256), "a machine", "2026-01-02", OURS, OTHER)
    assert found.command() == (
        "lorasmith bench train --base 'my models/sd15' --size 256 --batch 4 --rank 16 --steps 10 --device auto "
        "--precision auto"
    )
    assert f"    {found.command()}\n" in found.markdown()


def test_a_machine_says_what_figures_depend_on() -> None:
    words = compare.describe_machine("cpu")
    assert "CPU, " in words and " thread" in words and "torch 2" in words and "Python 3" in words
