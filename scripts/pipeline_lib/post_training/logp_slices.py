"""The log-probabilities of a long pass on disk, slice by slice: a kill loses seconds of it, and nothing is done twice.

    reference-train/00000000.parquet   the first pairs in the order of the pass
    reference-train/00001280.parquet   the next ones; the name says how many come before

A slice is written when SLICE_SECONDS are over and when the pass ends, also by a signal or an error. Where it is cut
depends on the machine and enters no number: a slice holds whole batches, and they are the same at every start.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet as parquet

from pipeline_lib.stage import atomic_path

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""The columns, by TRL's names."""

SLICE_SECONDS = 10.0
"""Time from one slice to the next: what a kill can lose."""


class LogpSlices:
    """The slices in a folder. Use as a context manager: leaving it writes what is waiting.

    logps: log p(chosen), log p(rejected) from earlier starts, float32 [pairs, 2], in the order of the pass.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        slices = [_read(path) for path in sorted(folder.glob("[0-9]*.parquet"))]
        self.logps = numpy.concatenate([numpy.empty((0, 2), dtype=numpy.float32), *slices])
        self._written = len(self.logps)
        self._waiting: list[numpy.ndarray] = []
        self._written_at = time.monotonic()

    def add(self, logps: numpy.ndarray) -> None:
        """Take the log-probabilities of the next batch, float32 [pairs, 2], and write a slice when it is time."""
        self._waiting.append(logps)
        if time.monotonic() - self._written_at >= SLICE_SECONDS:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        logps, self._waiting = numpy.concatenate(self._waiting), []  # what fails is not tried again on leaving
        with atomic_path(self._folder / f"{self._written:08d}.parquet") as temporary:
            parquet.write_table(pyarrow.table(dict(zip(REFERENCE, logps.T, strict=True))), temporary)
        self._written += len(logps)
        self._written_at = time.monotonic()

    def __enter__(self) -> LogpSlices:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()


def _read(path: Path) -> numpy.ndarray:
    table = parquet.read_table(path)
    return numpy.stack([table[column].to_numpy() for column in REFERENCE], axis=1)
