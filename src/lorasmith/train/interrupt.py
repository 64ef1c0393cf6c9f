"""Ctrl-C as a request: the step is finished and saved before the training ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupt:
    """While the block runs, the first Ctrl-C sets ``requested`` instead of raising; a second one acts as usual.

    Outside the main thread Python delivers no signals, and the block changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._usual = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._give_back()

    def _give_back(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._usual)
