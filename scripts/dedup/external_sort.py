"""Sorting (key, row) records that need not fit into memory, and finding the keys that occur more than once.

What: records are collected up to the room given, sorted, and written as a run; runs are merged block by block. When
everything fits into one run nothing is written.
How: each run gives a block; all records up to the smallest last key of these blocks are complete, because every run
is ascending; they are sorted together and leave. So the merge is a few numpy calls per block, never a heap of objects.
Cost: one write and one read of 16 bytes per record when it spills. Which records come first among equal keys is not
specified, and nobody may depend on it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline_lib.stage.atomic import process_name

Records = tuple[np.ndarray, np.ndarray]  # keys uint64[n], rows int64[n]

BYTES_PER_RECORD = 48  # key and row, their sorted copies, the order
LEAST_RECORDS = 1 << 12


@dataclass
class ExternalSorter:
    """Takes records in any order, gives them back by ascending key. Runs lie in `folder` while it works."""

    folder: Path
    name: str
    room: int
    _held: list[Records] = field(default_factory=list)
    _count: int = 0
    _runs: list[tuple[Path, int]] = field(default_factory=list)

    @property
    def capacity(self) -> int:
        """Records of one run."""
        return max(self.room // BYTES_PER_RECORD, LEAST_RECORDS)

    def add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Take some records. Raises OSError when the disk is full."""
        while len(keys):
            free = self.capacity - self._count
            self._held.append((keys[:free], rows[:free]))
            self._count += len(keys[:free])
            if self._count == self.capacity:
                self._spill()
            keys, rows = keys[free:], rows[free:]

    def _sorted_held(self) -> Records:
        keys = np.concatenate([np.empty(0, np.uint64), *(keys for keys, _ in self._held)])
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in self._held)])
        self._held, self._count = [], 0
        order = np.argsort(keys)
        return keys[order], rows[order]

    def _spill(self) -> None:
        keys, rows = self._sorted_held()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}-{process_name()}-{len(self._runs):05d}.run"
        with open(path, "wb") as stream:
            keys.tofile(stream)
            rows.tofile(stream)
        self._runs.append((path, len(keys)))

    def blocks(self) -> Iterator[Records]:
        """Yield all records, ascending over the blocks; then the runs are gone."""
        try:
            if not self._runs:
                yield self._sorted_held()
                return
            if self._count:
                self._spill()
            yield from _merge(self._runs, max(self.capacity // len(self._runs), LEAST_RECORDS))
        finally:
            for path, _ in self._runs:
                path.unlink(missing_ok=True)
            self._runs = []


def _merge(runs: list[tuple[Path, int]], block: int) -> Iterator[Records]:
    waiting: list[Records] = [(np.empty(0, np.uint64), np.empty(0, np.int64))] * len(runs)
    read = [0] * len(runs)
    while True:
        for number, (path, length) in enumerate(runs):
            if not len(waiting[number][0]) and read[number] < length:
                count = min(block, length - read[number])
                keys = np.fromfile(path, np.uint64, count, offset=8 * read[number])
                waiting[number] = keys, np.fromfile(path, np.int64, count, offset=8 * (length + read[number]))
                read[number] += count
        unfinished = [
            keys[-1] for number, (keys, _) in enumerate(waiting) if len(keys) and read[number] < runs[number][1]
        ]
        limit = min(unfinished, default=np.uint64(2**64 - 1))
        cuts = [int(np.searchsorted(keys, limit, side="right")) for keys, _ in waiting]
        if not any(cuts):
            return
        keys = np.concatenate([keys[:cut] for (keys, _), cut in zip(waiting, cuts, strict=True)])
        rows = np.concatenate([rows[:cut] for (_, rows), cut in zip(waiting, cuts, strict=True)])
        waiting = [(keys[cut:], rows[cut:]) for (keys, rows), cut in zip(waiting, cuts, strict=True)]
        order = np.argsort(keys)
        yield keys[order], rows[order]


def repeated(blocks: Iterator[Records]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows int64[n], group int64[n]) of the records whose key occurs at least twice.

    Groups are numbered from 0 in the order of their keys and may go on in the next block.
    """
    previous, groups = None, 0  # the key before this block, the groups begun so far
    held = np.empty(0, np.uint64), np.empty(0, np.int64)
    for keys, rows in blocks:
        keys, rows = np.concatenate([held[0], keys]), np.concatenate([held[1], rows])
        held = keys[-1:], rows[-1:]
        found, groups = _repeated_in(keys, rows[:-1], previous, groups)
        yield found
        previous = keys[-2] if len(keys) > 1 else previous
    if len(held[0]) and previous is not None and previous == held[0][0]:
        yield held[1], np.array([groups - 1])


def _repeated_in(keys: np.ndarray, rows: np.ndarray, previous, groups: int):
    """Look at all records but the last, which only tells whether the one before it is repeated."""
    same_as_next = keys[:-1] == keys[1:]
    same_as_before = np.zeros(len(same_as_next), np.bool_)
    same_as_before[1:] = same_as_next[:-1]
    if len(same_as_before) and previous is not None:
        same_as_before[0] = keys[0] == previous
    begins = same_as_next & ~same_as_before
    chosen = same_as_next | same_as_before
    numbers = groups + np.cumsum(begins) - 1
    return (rows[chosen], numbers[chosen]), groups + int(np.count_nonzero(begins))
