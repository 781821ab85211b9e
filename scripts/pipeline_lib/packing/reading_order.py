"""The order in which an epoch visits the packed sequences: random, yet kind to a cache of compressed chunks.

What: the documents were shuffled before they were cut into chunks, so a chunk is already a random sample. An epoch
shuffles the order of the chunks, takes a window of a few of them at a time, and shuffles the sequences of the window;
every chunk is read once per epoch.
How: "shuffle" is sorting by a 64-bit hash of (seed, epoch, number): exact integer arithmetic that no library version
changes, and any window can be computed alone, which is what makes resuming at any position cheap.
Growth: parts that are added while an epoch runs come after it in the same epoch, each shuffled in itself. What an epoch
began with is therefore visited in the order it had, and the next epoch shuffles everything together.
The order knows nothing of batch size, ranks or workers: they only cut the one global sequence of sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


def mix(values: np.ndarray, key: int) -> np.ndarray:
    """Return a 64-bit hash of each value under a key, uint64: SplitMix64's finaliser (Steele et al. 2014), twice."""
    state = values.astype(np.uint64)
    for salt in (key & 0xFFFFFFFFFFFFFFFF, 0x9E3779B97F4A7C15):
        state = state + np.uint64(salt)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def epoch_key(seed: int, epoch: int) -> int:
    """Return the key of one epoch of one seed."""
    return int(mix(np.array([epoch], np.uint64), int(mix(np.array([seed], np.uint64), 1)[0]))[0])


@dataclass(frozen=True)
class Position:
    """Where reading stands: `offset` sequences of epoch `epoch`, which began when the cache had `parts` parts.

    total: sequences of this and all earlier epochs.
    """

    epoch: int
    offset: int
    parts: int
    total: int


@dataclass(frozen=True)
class ReadingOrder:
    """The endless sequence of sequences of one split.

    bounds: int64 [chunks + 1], where each chunk's sequences begin among those of the split; parts: int64 [parts + 1],
    where each part's chunks begin among those of the split; window: how many chunks are shuffled together (and held in
    memory).
    """

    bounds: np.ndarray
    parts: np.ndarray
    seed: int
    window: int

    @property
    def sequences(self) -> int:
        """How many sequences an epoch that begins now has."""
        return int(self.bounds[-1] - self.bounds[0])

    def start(self, epoch: int = 0) -> Position:
        """Return the position at the start of an epoch that begins now."""
        return Position(epoch, 0, len(self.parts) - 1, epoch * self.sequences)

    def epoch_windows(self, epoch: int, parts: int | None = None) -> list[np.ndarray]:
        """Return the chunks of each window of an epoch that began with `parts` parts, as positions into `bounds`."""
        began = len(self.parts) - 1 if parts is None else parts
        windows = []
        for first, stop in zip([0, *self.parts[began:-1]], self.parts[began:], strict=True):
            chunks = np.arange(first, stop)
            order = chunks[np.argsort(mix(chunks, epoch_key(self.seed, epoch)), kind="stable")]
            windows += [order[start : start + self.window] for start in range(0, len(order), self.window)]
        return windows

    def window_sequences(self, epoch: int, chunks: np.ndarray) -> np.ndarray:
        """Return the sequence numbers of a window in the order they are visited, int64."""
        numbers = np.concatenate([np.arange(self.bounds[chunk], self.bounds[chunk + 1]) for chunk in chunks])
        return numbers[np.argsort(mix(numbers, epoch_key(self.seed, epoch) ^ 0x5DEECE66D), kind="stable")]

    def iterate(self, position: Position, epochs: int | None) -> Iterator[int]:
        """Yield sequence numbers from `position` to the end of the last epoch."""
        epoch, skip, parts = position.epoch, position.offset, position.parts
        while epochs is None or epoch < epochs:
            for chunks in self.epoch_windows(epoch, parts):
                size = int(sum(self.bounds[chunk + 1] - self.bounds[chunk] for chunk in chunks))
                if skip >= size:
                    skip -= size
                    continue
                yield from self.window_sequences(epoch, chunks)[skip:].tolist()
                skip = 0
            epoch, skip, parts = epoch + 1, 0, len(self.parts) - 1

    def advance(self, position: Position, sequences: int) -> Position:
        """Return where reading stands after so many more sequences; the end of an epoch is not yet the next one."""
        epoch, parts, offset = position.epoch, position.parts, position.offset + sequences
        while offset > self.sequences:
            epoch, parts, offset = epoch + 1, len(self.parts) - 1, offset - self.sequences
        return Position(epoch, offset, parts, position.total + sequences)
