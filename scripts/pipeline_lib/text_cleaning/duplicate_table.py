"""The duplicates of the whole corpus, in the order of its candidates, so that a shard reads only its part.

    duplicates.parquet   one row per duplicate: its `row` among all candidates (ascending) and dedup's evidence
    copies.npy           int32[candidates]: how many removed documents each candidate stands for

Candidates are counted over all pieces in their order, which is the order in which dedup reads them. Memory: one chunk
of rows for the writer, the rows between two candidates for a reader; the counts are mapped, not loaded.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.stage import atomic_path

if TYPE_CHECKING:
    from dedup.receipts import Removals


@dataclass(frozen=True)
class DuplicateTable:
    """The two files."""

    rows: Path
    copies: Path

    @classmethod
    def below(cls, folder: Path) -> "DuplicateTable":
        """The table of a stage whose scratch folder this is."""
        return cls(folder / "duplicates.parquet", folder / "copies.npy")

    def write(self, removals: "Removals | None", candidates: int) -> None:
        """Write both files whole; None says that nothing was compared. Raises OSError when the disk is full."""
        from dedup.receipts import RECEIPT_SCHEMA

        schema = RECEIPT_SCHEMA.insert(0, pa.field("row", pa.int64()))
        with atomic_path(self.rows) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for first, table in removals.in_row_order() if removals else ():
                rows = removals.row[first : first + len(table)]
                writer.write_table(table.add_column(0, schema.field("row"), pa.array(rows)))
        with atomic_path(self.copies) as path, open(path, "wb") as stream:
            counts = np.zeros(candidates, np.int32)
            if removals:
                survivors, number = np.unique(removals.survivor, return_counts=True)
                counts[survivors] = number
            np.save(stream, counts)


class DuplicateReader(AbstractContextManager["DuplicateReader"]):
    """Slices of the table by candidate."""

    def __init__(self, table: DuplicateTable):
        self._file = pq.ParquetFile(table.rows)
        self._copies = np.load(table.copies, mmap_mode="r")
        groups = [self._file.metadata.row_group(group) for group in range(self._file.num_row_groups)]
        self._ends = np.array([group.column(0).statistics.max + 1 for group in groups], np.int64)

    def between(self, first: int, end: int, columns: list[str] | None = None) -> pa.Table:
        """Return the duplicates among the candidates first to end - 1, `row` counted from `first`."""
        low, high = np.searchsorted(self._ends, [first, end - 1], side="right")
        groups = list(range(low, min(high + 1, len(self._ends)))) if end > first else []
        table = self._file.read_row_groups(groups, columns=columns and ["row", *columns], use_threads=False)
        rows = table["row"].to_numpy()
        low, high = np.searchsorted(rows, [first, end])
        return table.slice(low, high - low).set_column(0, "row", pa.array(rows[low:high] - first))

    def copies(self, first: int, end: int) -> np.ndarray:
        """int32[end - first]: how many removed documents each of these candidates stands for."""
        return np.array(self._copies[first:end])

    def __exit__(self, *error: object) -> None:
        self._file.close()
