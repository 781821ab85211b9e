"""What stage 01 would cost, source by source: a probe of python_docs and of local files, and questions about sizes.

What lies behind a network takes as long as that network does: http servers are asked for sizes, the hub for nothing.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..stage import Estimate
from ..stage.memory import own_peak_bytes
from ..stage.progress import duration, size
from .base import Dropped
from .http_sizes import SizeQuestions

if TYPE_CHECKING:
    from ..config.download import DownloadSettings
    from ..config.sources import SourceSettings

PROBED_BYTES = 8_000_000
WORKER_BYTES = 130_000_000
"""Peak memory of a worker, measured: one unit's records, its largest syntax tree and its phrases."""
BASE_BYTES = 200_000_000
"""Peak memory of the main process, measured with all derived sets."""
LOCAL_BYTES = 300_000_000
"""Peak memory while local files are read, measured with Parquet, which takes the most."""
SMALL_SETS_SECONDS = 3.0
"""Choosing and writing the derived sets, measured."""
COMPRESSION = 0.3
"""Size of zstd Parquet and scratch files together, as a share of the text."""


@dataclass(frozen=True)
class Part:
    """What one source is expected to take, or the python_docs sources together; None where nobody can tell.

    matched: how much there is to read; why: what was measured, or why it is unknown.
    """

    name: str
    matched: str
    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    why: str

    def line(self) -> str:
        """Say it on one line."""
        matched = f"{self.matched}; " if self.matched else ""
        if self.seconds is None or self.disk_bytes is None:
            return f"{self.name}: {matched}time and disk unknown ({self.why})"
        return f"{self.name}: {matched}about {duration(self.seconds)}, {size(self.disk_bytes)} of disk ({self.why})"


def expected_cost(settings: DownloadSettings, workers: int) -> Estimate:
    """Time, memory and disk of all sources, with a line for each.

    The whole is unknown where a part is, and its basis says then what the others take. Raises UserError for a source
    that the stage would refuse.
    """
    entries = settings.entries()
    questions = SizeQuestions()
    parts = [_part_of(entry, settings.shard_megabytes, questions) for entry in entries if entry.type != "python_docs"]
    if len(parts) < len(entries):
        parts.insert(0, _python_docs(settings, workers))
    lines = tuple(part.line() for part in parts)
    known = [part for part in parts if part.seconds is not None]
    if not known:
        return Estimate(None, None, None, "no source can be probed", lines)
    seconds, disk = sum(part.seconds for part in known), sum(part.disk_bytes for part in known)
    memory = max(part.memory_bytes for part in known)
    if len(known) == len(parts):
        return Estimate(seconds, memory, disk, "the sum of the sources", lines)
    others = ", ".join(part.name for part in parts if part.seconds is None)
    basis = f"without {others} about {duration(seconds)}, {size(memory)} of memory, {size(disk)} of disk"
    return Estimate(None, None, None, basis, lines)


def _part_of(entry: SourceSettings, shard_megabytes: float, questions: SizeQuestions) -> Part:
    if entry.type == "local":
        from .local_probe import probe_local

        found = probe_local(entry, int(shard_megabytes * 1e6))
        memory = max(LOCAL_BYTES, own_peak_bytes()) if found.seconds is not None else None
        return Part(entry.name, found.matched, found.seconds, memory, found.disk_bytes, found.why)
    if entry.type == "http":
        return Part(entry.name, questions.ask(entry), None, None, None, "they depend on the network")
    return Part(entry.name, "", None, None, None, "the hub is asked for its files when the stage runs, not by a plan")


def _python_docs(settings: DownloadSettings, workers: int) -> Part:
    """Parse a few megabytes of the Python files, spread over all of them, and scale up by bytes."""
    from .python_docs.discovery import source_files
    from .python_docs.harvest import harvest_unit

    files = source_files(tuple(settings.python_docs.distributions))
    every = sum(file.size for file in files)
    sample = files[:: max(1, every // PROBED_BYTES)]
    probed = sum(file.size for file in sample)
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        records = harvest_unit(("probe", sample), Path(scratch))
        seconds = time.monotonic() - started
    text = sum(len(record["text"].encode("utf-8")) for record in records if not isinstance(record, Dropped))
    share = every / max(1, probed)
    return Part(
        "python_docs",
        f"{len(files):,} files, {size(every)}",
        seconds * share / workers + SMALL_SETS_SECONDS,
        BASE_BYTES + workers * WORKER_BYTES,
        int(text * share * COMPRESSION),
        f"parsed {probed / 1e6:.0f} of {every / 1e6:.0f} MB of Python source",
    )
