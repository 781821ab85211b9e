"""When to try a failed request again, how long to wait, and when to give up.

A transfer of hours meets dropped connections, so failures are counted since the last byte of progress, not since
the start. Waits double, with a little randomness so that many machines do not return in step; a server that names
its own wait (`Retry-After`, RFC 9110 section 10.2.3) is obeyed.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ..stage import StageFailure

FIRST_WAIT_SECONDS = 0.5
_SLICE_SECONDS = 0.2


class TryAgain(Exception):
    """A request failed in a way that may pass; `wait` is the pause in seconds that the server asked for."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class Patience:
    """Counts the failures of one transfer and waits between them."""

    def __init__(
        self, what: str, attempts: int, longest_wait: float, say: Callable[[str], None], pause: Callable[[], None]
    ):
        self.what = what
        self.attempts = attempts
        self.longest_wait = longest_wait
        self.failures = 0
        self._say, self._pause = say, pause

    def progress(self) -> None:
        """Note that the transfer moved on: the count of failures starts anew."""
        self.failures = 0

    def wait(self, failure: TryAgain) -> None:
        """Wait before the next attempt. Raises StageFailure when there is none, or the server's wait is too long."""
        self.failures += 1
        kept = "what was received is kept, so the same command continues here"
        if self.failures >= self.attempts:
            raise StageFailure(f"{self.what}: gave up after {self.failures} attempts ({failure}); {kept}") from failure
        if failure.wait is not None and failure.wait > self.longest_wait:
            raise StageFailure(
                f"{self.what}: the server asks to wait {failure.wait:.0f} s ({failure}), more than "
                f"`longest_wait_seconds` of {self.longest_wait:g}; {kept} later"
            ) from failure
        seconds = failure.wait
        if seconds is None:
            doubled = FIRST_WAIT_SECONDS * 2 ** (self.failures - 1) * random.uniform(1.0, 1.25)
            seconds = min(self.longest_wait, doubled)
        self._say(f"  {self.what}: {failure}; attempt {self.failures + 1} of {self.attempts} in {seconds:.1f} s")
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._pause()
            time.sleep(min(_SLICE_SECONDS, left))


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or the time until a date; None when it says neither."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
