"""Steps whose loss or gradient norm stands out from the steps before.

A step is a spike when a value lies more than `deviations` robust standard deviations (1.4826 x the median absolute
deviation) above the median of the last 64 ordinary steps, and at least a tenth above that median, since losses that
hardly vary would otherwise make spikes of noise. Medians, because a mean would be moved by the spike it should
find. Spikes do not enter the history.
"""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW = 64
HISTORY_NEEDED = 16
LEAST_EXCESS = 1.1
_SIGMA = 1.4826


class SpikeDetector:
    """Remembers what ordinary steps look like; its state is JSON and belongs to the checkpoint."""

    def __init__(self, deviations: float | None):
        """`deviations` None never finds one."""
        self._deviations = deviations
        self._history: dict[str, deque[float]] = {}

    def find(self, values: dict[str, float]) -> dict[str, float]:
        """Return {name: height in robust standard deviations} of the values of a step that are spikes."""
        if self._deviations is None:
            return {}
        spikes = {}
        for name, value in values.items():
            past = self._history.setdefault(name, deque(maxlen=WINDOW))
            if len(past) >= HISTORY_NEEDED:
                middle = median(past)
                spread = _SIGMA * median(abs(other - middle) for other in past)
                if value > middle + self._deviations * spread and value > LEAST_EXCESS * middle:
                    spikes[name] = round((value - middle) / spread, 1) if spread else float(WINDOW)
                    continue
            past.append(value)
        return spikes

    def state(self) -> dict[str, list[float]]:
        """Return the history as JSON."""
        return {name: list(past) for name, past in self._history.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Continue from a history."""
        self._history = {name: deque(past, maxlen=WINDOW) for name, past in state.items()}
