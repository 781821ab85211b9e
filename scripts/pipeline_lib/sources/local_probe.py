"""What a local source matches, and what reading it would take: a few of its files are read and written for real.

The files are taken in a shuffled order, so that one kind of file which lies together does not speak for all, until
enough bytes are read. Of a large file only the beginning is read, and the rows are scaled up by the bytes of the file.
Where that beginning is a copy, its end looks damaged: whether the file itself is, is asked of the file.
"""

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..config.sources import SourceSettings
from ..data_file_names import split_suffix
from ..stage import Unit, UserError
from ..stage.progress import size
from .base import Dropped, Record
from .file_rows import rows_of_file
from .local import LocalSource
from .records import records_of
from .rows import MAX_ROW_BYTES, Row, Share
from .unit_files import sink_of, write_unit

PROBED_BYTES = 16_000_000
BEGINNING_BYTES = 4_000_000
"""How much of one file is read at most: of the file, or of Parquet as its rows lie in memory."""
PROBE_SECONDS = 2.0
"""After this no further file is begun: a page of HTML takes tens of milliseconds however small it is."""
START_SECONDS = 0.3
"""What a source takes however small it is, measured."""


@dataclass(frozen=True)
class LocalCost:
    """What the probe found out: seconds and disk_bytes are None when no record was read.

    matched: how many files and bytes; why: what was read.
    """

    matched: str
    seconds: float | None
    disk_bytes: int | None
    why: str


def probe_local(settings: SourceSettings, shard_bytes: int) -> LocalCost:
    """Read and write some of the source's files in a temporary folder and scale up by bytes.

    Raises UserError for paths without files, for a file too large to be one document, and for what the stage would
    refuse in what is read.
    """
    source = LocalSource(settings)
    _refuse_too_large_documents(source)
    sizes = [file.stat().st_size for file in source.files]
    total = sum(sizes)
    matched = f"{len(sizes):,} file{'s' * (len(sizes) != 1)}, {size(total)}"
    order = [number for number, length in enumerate(sizes) if length]
    random.Random(0).shuffle(order)
    with tempfile.TemporaryDirectory() as folder:
        probe = _Probe(source, Path(folder))
        _write(source, islice(probe.records(order[:1]), 1), None, Path(folder, "first"), shard_bytes)  # imports
        probe.bytes = probe.files = probe.asking_seconds = 0
        started = time.perf_counter()
        records = probe.records(order)
        result, disk = _write(source, records, settings.max_documents, Path(folder, "probe"), shard_bytes)
        seconds = time.perf_counter() - started - probe.asking_seconds
    documents, limit = result["documents"], settings.max_documents
    if not documents:
        return LocalCost(matched, None, None, f"no record in the {probe.files:,} files that were probed")
    scale = 1.0 if documents == limit else max(1.0, total / probe.bytes)
    if limit is not None:
        scale = min(scale, limit / documents)
    why = f"read {documents:,} record{'s' * (documents != 1)} of {probe.files:,} of them"
    return LocalCost(matched, START_SECONDS + scale * seconds, int(scale * disk), why)


def _refuse_too_large_documents(source: LocalSource) -> None:
    """Let the reader refuse the files whose length alone says that it would, unless the stage may end before them."""
    settings = source.settings
    if settings.document_separator is not None or settings.max_documents is not None:
        return
    for file, label in zip(source.files, source.labels, strict=True):
        if split_suffix(label) == ("text", "") and file.stat().st_size > MAX_ROW_BYTES:
            next(rows_of_file(file, label, settings))


def _write(
    source: LocalSource, records: Iterator[Record | Dropped], room: int | None, folder: Path, shard_bytes: int
) -> tuple[dict[str, Any], int]:
    """Write the records as a unit below the folder; return the unit's result and the bytes of its files."""
    unit = Unit("probe", folder)
    result = write_unit(unit, sink_of(unit, source, 0, shard_bytes, None), source, records, room, lambda line: None)
    unit.commit()
    return result, sum(entry.bytes for entry in unit.files.values())


class _Probe:
    """Reads files of a source and counts how much of them it has read."""

    def __init__(self, source: LocalSource, scratch: Path):
        self.bytes = 0.0
        self.files = 0
        self.asking_seconds = 0.0
        self._source, self._scratch = source, scratch
        self._settings = source.settings

    def records(self, order: list[int]) -> Iterator[Record | Dropped]:
        """Records of the files with these numbers until enough is read."""
        end = time.monotonic() + PROBE_SECONDS
        for number in order:
            if self.files and (self.bytes >= PROBED_BYTES or time.monotonic() > end):
                return
            self.files += 1
            file, label = self._source.files[number], self._source.labels[number]
            yield from records_of(self._rows(file, label), label, self._settings)

    def _rows(self, file: Path, label: str) -> Iterator[Row | Dropped]:
        reader, compression = split_suffix(label)
        length = file.stat().st_size
        if length <= BEGINNING_BYTES:
            yield from rows_of_file(file, label, self._settings)
            self.bytes += length
        elif reader == "parquet":
            yield from self._parquet_rows(file, label, length)
        elif reader == "warc" and compression in ("", ".gz"):  # its records say at which byte of the file they begin
            share = _first_share(length)
            yield from rows_of_file(file, label, self._settings, share)
            self.bytes += length / share.count
        else:
            beginning, read = self._cut(file, compression)
            seen = 0
            try:
                for row in rows_of_file(beginning, label, self._settings):
                    seen += 1
                    yield row
            except UserError:
                self._ask_the_file(file, label, seen)
            self.bytes += read

    def _ask_the_file(self, file: Path, label: str, seen: int) -> None:
        """Read the file up to the row behind those that its beginning gave. Raises UserError when it has none there."""
        started = time.perf_counter()
        next(islice(rows_of_file(file, label, self._settings), seen, None), None)
        self.asking_seconds += time.perf_counter() - started

    def _cut(self, file: Path, compression: str) -> tuple[Path, int]:
        """Copy the beginning of a file, if it is not compressed up to the end of a line; return its length too."""
        with open(file, "rb") as stream:
            data = stream.read(BEGINNING_BYTES)
        if not compression:
            data = data[: data.rfind(b"\n") + 1] or data
        beginning = self._scratch / "beginning"
        beginning.write_bytes(data)
        return beginning, len(data)

    def _parquet_rows(self, file: Path, label: str, length: int) -> Iterator[Row | Dropped]:
        import pyarrow.parquet as pq

        share = _first_share(length)  # the first row group begins in it
        rows = read = 0
        for row in rows_of_file(file, label, self._settings, share):
            rows, read = rows + 1, read + row.bytes
            yield row
            if read >= BEGINNING_BYTES:
                break
        self.bytes += length * rows / max(1, pq.read_metadata(file).num_rows)


def _first_share(length: int) -> Share:
    """The share of a file of `length` bytes that is its beginning."""
    return Share(0, -(-length // BEGINNING_BYTES))
