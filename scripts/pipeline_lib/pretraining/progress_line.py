"""The line a person watches while a run goes: step, loss, speed, time left."""

from __future__ import annotations

import time
from collections.abc import Callable


def spell_progress(step: int, steps: int, loss: float, tokens_per_second: float, seconds_left: float) -> str:
    """Return "Step 770/26,235 ( 2.9%) | Loss: 5.583 | 106,212 tok/s | ETA: 04:23h".

    The time left is in hours:minutes, below a minute in seconds: "ETA: 42s".
    """
    hours, minutes = divmod(round(seconds_left / 60), 60)
    left = f"{seconds_left:.0f}s" if round(seconds_left) < 60 else f"{hours:02d}:{minutes:02d}h"
    return (
        f"Step {step:,}/{steps:,} ({100 * step / steps:4.1f}%) | Loss: {loss:.3f} | {tokens_per_second:,.0f} tok/s"
        f" | ETA: {left}"
    )


class ProgressLine:
    """Says a line after the first step, the last, and every `every` seconds between.

    The speed is that of the time since the previous line, whatever it was spent on: validation and checkpoints count,
    so that speed times time is the number of tokens. The time left goes by all steps since the start of this process.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        every: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        """`done` of `steps` steps were done before."""
        self._steps, self._done, self._every, self._say, self._clock = steps, done, every, say, clock
        self._start = self._last = clock()
        self._tokens = 0
        self._spoken = False

    def step(self, step: int, loss: float, tokens: int) -> None:
        """Record that step number `step` is done and read `tokens` tokens, padding included."""
        self._tokens += tokens
        now = self._clock()
        if self._spoken and step < self._steps and now - self._last < self._every:
            return
        left = (self._steps - step) * (now - self._start) / (step - self._done)
        self._say(spell_progress(step, self._steps, loss, self._tokens / max(now - self._last, 1e-9), left))
        self._spoken, self._last, self._tokens = True, now, 0
