"""Signals and requests of other processes: what waits for what, and which code is left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from lorasmith.events import Event, Note
from lorasmith.train.control import Requests, ask
from lorasmith.train.interrupt import Interrupt, Stopped


def work(interrupt: Interrupt, log: list[str], *, held: bool, kill: int | None = None) -> Generator[Event, None, None]:
    try:
        if held:
            interrupt.holding = True
            if kill is not None:
                signal.raise_signal(kill)
            log.append("saved")
            yield Note("saved")
            interrupt.holding = False
        else:
            if kill is not None:
                signal.raise_signal(kill)
            log.append("computed")
            yield Note("computed")
        yield Note("next")
        log.append("after")
    finally:
        log.append("closed")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGBREAK", 130), ("SIGHUP", 129)])
def test_the_code_is_the_signals(name: str, code: int) -> None:
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("not on this system")
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("whoever started the tests had it ignored, as nohup does")
    usual, log = signal.getsignal(number), []  # type: ignore[var-annotated]
    with pytest.raises(Stopped) as caught, Interrupt() as interrupt:
        list(interrupt.guard(work(interrupt, log, held=False, kill=number)))
    assert caught.value.code == code
    assert log == ["closed"]  # dropped at once, and cleaned up
    assert signal.getsignal(number) is usual


def test_a_step_is_saved_first() -> None:
    log: list[str] = []
    with pytest.raises(Stopped), Interrupt() as interrupt:
        list(interrupt.guard(work(interrupt, log, held=True, kill=signal.SIGTERM)))
    assert log == ["saved", "closed"]


def test_the_second_signal_ends_everything_at_once() -> None:
    log: list[str] = []

    def stubborn(interrupt: Interrupt) -> Generator[Event, None, None]:
        interrupt.holding = True
        signal.raise_signal(signal.SIGINT)
        log.append("still there")
        signal.raise_signal(signal.SIGTERM)
        log.append("never")
        yield Note("never")

    with pytest.raises(Stopped) as caught, Interrupt() as interrupt:
        list(interrupt.guard(stubborn(interrupt)))
    assert log == ["still there"]
    assert caught.value.code == 143


def test_a_signal_while_somebody_listens_comes_at_the_next_event() -> None:
    log: list[str] = []
    with Interrupt() as interrupt:
        events = interrupt.guard(work(interrupt, log, held=False))
        next(events)
        signal.raise_signal(signal.SIGINT)  # as while the line is printed: nothing is raised there
        with pytest.raises(Stopped):
            next(events)
    assert log == ["computed", "closed"]


def test_an_ignored_signal_stays_ignored() -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGINT, usual)


def test_requests_of_another_process(tmp_path: Path) -> None:
    ask(tmp_path, "stop")
    requests = Requests(tmp_path)
    assert requests.pending() == set()  # asked of one that is gone
    with Interrupt(requests) as interrupt:
        ask(tmp_path, "save")
        requests._looked = float("-inf")
        assert interrupt.asked("save") and not interrupt.asked("sample") and not interrupt.requested
        interrupt.done("save")
        assert not interrupt.asked("save") and not list((tmp_path / "requests").iterdir())
        ask(tmp_path, "stop")
        requests._looked = float("-inf")
        assert interrupt.requested
        assert interrupt.stopped().code == 130
    assert not list((tmp_path / "requests").iterdir())
    with pytest.raises(ValueError, match="dance"):
        ask(tmp_path, "dance")


def test_outside_the_main_thread_nothing_is_changed() -> None:
    usual, seen = signal.getsignal(signal.SIGINT), []

    def other() -> None:
        with Interrupt() as interrupt:
            seen.append((signal.getsignal(signal.SIGINT), interrupt.requested))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [(usual, False)]
