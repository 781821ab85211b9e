"""SIGINT and SIGTERM become a request: finish the unit in hand, save, then leave with exit code 128 + signal.

A second SIGINT means "now": it raises KeyboardInterrupt, which is as safe as a SIGKILL, that is, loses only the unit.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class SignalRequest:
    """Remembers the first SIGINT or SIGTERM that arrived."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    @contextmanager
    def watching(self) -> Iterator["SignalRequest"]:
        """Install the handlers for the length of the block."""
        previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
