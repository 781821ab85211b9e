"""What a dedup run decided: one entry per removed document, with the evidence, and the table that says so."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import atomic_path

from .sketch import SketchSet, band_name

RECEIPT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("survivor_id", pa.string()),
        ("kind", pa.string()),
        ("jaccard", pa.float64()),
        ("containment", pa.float64()),
        ("bands", pa.int32()),
        ("preview", pa.string()),
        ("survivor_preview", pa.string()),
    ]
)
ROWS_PER_CHUNK = 16_384


@dataclass(frozen=True)
class Removals:
    """The documents to remove; every array has one entry per removed document, `row` ascending."""

    sketches: SketchSet
    first_new: int  # rows before this one belong to an index and are not removed
    bands: int  # of the signature
    row: np.ndarray  # int64
    survivor: np.ndarray  # int64: row of the document that stays in its place
    is_exact: np.ndarray  # bool: equal normalised text
    shared: np.ndarray  # int64: shingles in common with the survivor (0 for exact duplicates)
    size: np.ndarray  # int64: shingles of the removed document (likewise)
    other_size: np.ndarray  # int64: shingles of the survivor (likewise)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def documents(self) -> int:
        """Number of documents that could have been removed."""
        return len(self.sketches) - self.first_new

    @property
    def exact(self) -> int:
        """Number of exact duplicates."""
        return int(np.count_nonzero(self.is_exact))

    @property
    def jaccard(self) -> np.ndarray:
        """Measured similarity of the two shingle sets: float64, 1 for exact duplicates."""
        union = np.maximum(self.size + self.other_size - self.shared, 1)
        return np.where(self.is_exact, 1.0, self.shared / union)

    @property
    def containment(self) -> np.ndarray:
        """Fraction of the removed document's shingles that are in the survivor: float64, 1 for exact duplicates."""
        return np.where(self.is_exact, 1.0, self.shared / np.maximum(self.size, 1))

    def stays(self) -> np.ndarray:
        """bool[documents]: which of the new documents stay."""
        stays = np.ones(self.documents, np.bool_)
        stays[self.row - self.first_new] = False
        return stays

    def table(self, chosen: np.ndarray) -> pa.Table:
        """Return RECEIPT_SCHEMA rows of some removed documents, in the order given."""
        names = ["id", "preview", "shingles", *(band_name(band) for band in range(self.bands))]
        mine = self.sketches.take(self.row[chosen], names)
        theirs = self.sketches.take(self.survivor[chosen], names)
        agreeing = np.zeros(len(chosen), np.int32)
        for key, other in zip(mine[3:], theirs[3:], strict=True):
            agreeing += key.to_numpy() == other.to_numpy()
        columns = [
            mine[0].cast(pa.string()),
            theirs[0].cast(pa.string()),
            pa.array(np.where(self.is_exact[chosen], "exact", "fuzzy")).cast(pa.string()),
            pa.array(self.jaccard[chosen]),
            pa.array(self.containment[chosen]),
            pa.array(np.where(mine[2].to_numpy() > 0, agreeing, 0).astype(np.int32)),
            mine[1].cast(pa.string()),
            theirs[1].cast(pa.string()),
        ]
        return pa.table(columns, schema=RECEIPT_SCHEMA)

    def chunks(self) -> Iterator[pa.Table]:
        """Yield all receipts, sorted by id, ROWS_PER_CHUNK at a time."""
        ids = pa.table({"id": self.sketches.take(self.row, ["id"])[0], "row": pa.array(self.row)})
        order = pc.sort_indices(ids, sort_keys=[("id", "ascending"), ("row", "ascending")]).to_numpy()
        for first in range(0, len(order), ROWS_PER_CHUNK):
            yield self.table(order[first : first + ROWS_PER_CHUNK].astype(np.int64))

    def in_row_order(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield (number of its first removal, receipts), ROWS_PER_CHUNK at a time in the order of `row`."""
        for first in range(0, len(self), ROWS_PER_CHUNK):
            yield first, self.table(np.arange(first, min(first + ROWS_PER_CHUNK, len(self))))

    def receipts(self) -> pa.Table:
        """Return one row per removed document: id, survivor_id, kind, jaccard, containment, bands, both previews.

        `bands` counts the band keys on which the two agree, 0 for documents that are compared exactly only.
        """
        return pa.concat_tables([RECEIPT_SCHEMA.empty_table(), *self.chunks()])

    def write_receipts(self, path: Path) -> None:
        """Write the receipts as parquet, whole or not at all, a chunk at a time."""
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, RECEIPT_SCHEMA, compression="zstd") as writer:
            for chunk in self.chunks():
                writer.write_table(chunk)
