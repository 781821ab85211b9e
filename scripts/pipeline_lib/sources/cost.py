"""What stage 01 would cost: a probe that parses a second's worth of Python files, spread over all of them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..stage import Estimate
from ..stage.progress import duration
from .base import Dropped

if TYPE_CHECKING:
    from ..config.download import DownloadSettings

PROBED_BYTES = 8_000_000
WORKER_BYTES = 130_000_000
"""Peak memory of a worker, measured: one unit's records, its largest syntax tree and its phrases."""
BASE_BYTES = 200_000_000
"""Peak memory of the main process, measured with all derived sets."""
SMALL_SETS_SECONDS = 3.0
"""Choosing and writing the derived sets, measured."""
COMPRESSION = 0.3
"""Size of zstd Parquet and scratch files together, as a share of the text."""


def expected_cost(settings: DownloadSettings, workers: int) -> Estimate:
    """Time, memory and disk of the python_docs sources; other sources depend on networks and are only named."""
    others = [entry.name for entry in settings.entries() if entry.type != "python_docs"]
    not_probed = f"; not probed: {', '.join(others)}" if others else ""
    if len(others) == len(settings.entries()):
        return Estimate(None, None, None, f"depends on the network and the files{not_probed}")
    from .python_docs.discovery import source_files
    from .python_docs.harvest import harvest_unit

    files = source_files(tuple(settings.python_docs.distributions))
    every = sum(file.size for file in files)
    sample = files[:: max(1, every // PROBED_BYTES)]
    size = sum(file.size for file in sample)
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        records = harvest_unit(("probe", sample), Path(scratch))
        seconds = time.monotonic() - started
    text = sum(len(record["text"].encode("utf-8")) for record in records if not isinstance(record, Dropped))
    share = every / max(1, size)
    expected = seconds * share / workers + SMALL_SETS_SECONDS
    memory, disk = BASE_BYTES + workers * WORKER_BYTES, int(text * share * COMPRESSION)
    basis = f"parsed {size / 1e6:.0f} of {every / 1e6:.0f} MB of Python source"
    if others:
        return Estimate(None, None, None, f"python_docs alone takes about {duration(expected)} ({basis}){not_probed}")
    return Estimate(expected, memory, disk, basis)
