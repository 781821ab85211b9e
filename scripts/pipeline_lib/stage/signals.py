"""SIGINT and SIGTERM become a request: finish the unit in hand, save, then leave with exit code 128 + signal.

A second SIGINT means "now": it raises KeyboardInterrupt, which is as safe as a SIGKILL, that is, loses only the unit.
So does the first one while the stage waits for somebody else (a server that went silent): there is nothing to finish.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import StageInterrupted


class SignalRequest:
    """Remembers the first SIGINT or SIGTERM that arrived."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self._waiting:
            raise StageInterrupted(number)

    @contextmanager
    def while_waiting(self) -> Iterator[None]:
        """Let a signal raise StageInterrupted anywhere in the block, whose writes must be safe to cut short."""
        if self.received is not None:
            raise StageInterrupted(self.received)
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    @contextmanager
    def watching(self) -> Iterator["SignalRequest"]:
        """Install the handlers for the length of the block."""
        previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
