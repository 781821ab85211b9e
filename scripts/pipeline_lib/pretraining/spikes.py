"""Steps whose loss or gradient norm stands out from the steps before.

A step is a spike when a value lies more than `deviations` robust standard deviations (1.4826 x the median absolute
deviation) above the median of the last 64 ordinary steps, and at least a tenth above that median, since losses that
hardly vary would otherwise make spikes of noise. Medians, because a mean would be moved by the spike it should
find.

Spikes with fewer than 8 ordinary steps between them are one episode, and the first of them is the step to look at.
Spikes do not enter the history, until a value has had 16 of them in an episode: then it is no spike but a new level,
and its history begins anew with what it was in the episode.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Any

WINDOW = 64
HISTORY_NEEDED = 16
LEAST_EXCESS = 1.1
CALM = 8
_SIGMA = 1.4826


class SpikeDetector:
    """Remembers what ordinary steps look like; its state is JSON and belongs to the checkpoint."""

    def __init__(self, deviations: float | None):
        """`deviations` None never finds one."""
        self.begins_episode = False
        """Whether the step looked at last is the first spike of an episode."""
        self._deviations = deviations
        self._history: dict[str, deque[float]] = {}
        self._episode: dict[str, deque[float]] = {}
        self._counts: dict[str, int] = {}
        self._calm = CALM

    def find(self, values: dict[str, float]) -> dict[str, float]:
        """Return {name: height in robust standard deviations} of the values of a step that are spikes."""
        if self._deviations is None:
            return {}
        heights = {name: self._height(name, value) for name, value in values.items()}
        spikes = {name: height for name, height in heights.items() if height is not None}
        self.begins_episode = bool(spikes) and self._calm == CALM
        self._calm = 0 if spikes else min(CALM, self._calm + 1)
        if self._calm == CALM:
            self._episode, self._counts = {}, {}
        for name, value in values.items():
            if name not in spikes:
                self._history.setdefault(name, deque(maxlen=WINDOW)).append(value)
            if self._calm < CALM:
                self._follow(name, value, name in spikes)
        return spikes

    def _height(self, name: str, value: float) -> float | None:
        """Return how many robust standard deviations a spike is high, None for an ordinary value."""
        past = self._history.get(name, ())
        if len(past) < HISTORY_NEEDED:
            return None
        middle = median(past)
        spread = _SIGMA * median(abs(other - middle) for other in past)
        if value <= middle + self._deviations * spread or value <= LEAST_EXCESS * middle:
            return None
        return round((value - middle) / spread, 1) if spread else float(WINDOW)

    def _follow(self, name: str, value: float, is_spike: bool) -> None:
        """Note a value of the episode; the one that makes it a new level begins the history anew."""
        self._episode.setdefault(name, deque(maxlen=WINDOW)).append(value)
        self._counts[name] = self._counts.get(name, 0) + is_spike
        if self._counts[name] == HISTORY_NEEDED:
            self._history[name] = self._episode.pop(name)
            del self._counts[name]

    def state(self) -> dict[str, Any]:
        """Return the history and the episode in hand as JSON."""
        return {
            "history": {name: list(past) for name, past in self._history.items()},
            "episode": {name: list(past) for name, past in self._episode.items()},
            "counts": dict(self._counts),
            "calm": self._calm,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        if "history" not in state:  # checkpoints of older versions hold the history alone
            state = {"history": state, "episode": {}, "counts": {}, "calm": CALM}
        self._history = {name: deque(past, maxlen=WINDOW) for name, past in state["history"].items()}
        self._episode = {name: deque(past, maxlen=WINDOW) for name, past in state["episode"].items()}
        self._counts = dict(state["counts"])
        self._calm = state["calm"]
