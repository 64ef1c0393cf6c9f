"""Being told to stop: Ctrl-C, SIGTERM, a closing terminal, or a request of another process.

The first time is a request. While a step is computed and saved it waits for that; anywhere else (encoding, compiling,
validating, drawing) the work is dropped at once, since all of it can be done again. The second time ends everything
at once; what is on the disk is complete or absent, as always.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from lorasmith.events import Event
from lorasmith.train.control import Requests

if TYPE_CHECKING:
    from lorasmith.train.ranks import Ranks

_NAMES = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")  # those that this system has


class Stopped(KeyboardInterrupt):
    """The training was told to stop. ``code`` is the exit code: 128 and the signal's number, as shells have it."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.code = 130 if signal.Signals(number).name in ("SIGINT", "SIGBREAK") else 128 + number

    @classmethod
    def of_code(cls, code: int) -> Stopped:
        """Return the exception of an exit code, as another process has left with."""
        return cls(signal.SIGINT if code == 130 else code - 128)


class Wishes(NamedTuple):
    """What a training shall do once its step is done."""

    stop: bool
    save: bool
    sample: bool


class Interrupt:
    """While the block runs, signals to stop are requests first.

    Outside the main thread Python delivers no signals; requests of other processes work there, too.

    Attributes:
        holding: there are steps that are not saved yet, so that a first request waits. Whoever works sets it.
    """

    def __init__(self, requests: Requests | None = None) -> None:
        self.requests = requests
        self.holding = False
        self._signal: int | None = None
        self._computing = False  # within the work, not in who listens to it
        self._usual: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the training shall stop."""
        if self._signal is None and self.requests and "stop" in self.requests.pending():
            self._signal = signal.SIGINT
        return self._signal is not None

    def wishes(self, ranks: Ranks) -> Wishes:
        """Return what is wished of any of ``ranks``, the same in all; called at the same place by each of them."""
        ranks.settle()
        stop = (self._signal or signal.SIGINT) if self.requested else 0
        number, save, sample = ranks.most(stop, self.asked("save"), self.asked("sample"))
        if number and self._signal is None:
            self._signal = int(number)
        return Wishes(bool(number), bool(save), bool(sample))

    def asked(self, what: str) -> bool:
        """Return whether another process asks for ``what``."""
        return self.requests is not None and what in self.requests.pending()

    def done(self, what: str) -> None:
        """Say that what another process asked for is done."""
        if self.requests:
            self.requests.done(what)

    def guard(self, events: Generator[Event, None, None]) -> Iterator[Event]:
        """Pass ``events`` on, and raise Stopped inside of them as soon as that is wanted and nothing is held."""
        try:
            while True:
                try:
                    if self.requested and not self.holding:
                        event = events.throw(self.stopped())
                    else:
                        self._computing = True
                        event = next(events)
                except StopIteration:
                    return
                finally:
                    self._computing = False
                yield event
        finally:
            events.close()

    def stopped(self) -> Stopped:
        """Return the exception that ends the training."""
        return Stopped(signal.SIGINT if self._signal is None else self._signal)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._usual[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)
        self._usual = {}
        self.done("stop")

    def _request(self, number: int, frame: FrameType | None) -> None:
        first, self._signal = self._signal is None, number
        if not first or (self._computing and not self.holding):
            raise self.stopped()
