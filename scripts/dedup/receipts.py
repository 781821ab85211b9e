"""What a dedup run decided: one entry per removed document, with the evidence, and the table that says so."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .sketch import Sketches

RECEIPT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("survivor_id", pa.string()),
        ("kind", pa.string()),
        ("jaccard", pa.float64()),
        ("containment", pa.float64()),
        ("bands", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Removals:
    """The documents to remove; every array has one entry per removed document, `row` ascending."""

    sketches: Sketches
    row: np.ndarray  # int64: position in the corpus
    survivor: np.ndarray  # int64: position of the document that stays in its place
    is_exact: np.ndarray  # bool: equal normalised text
    shared: np.ndarray  # int64: shingles in common with the survivor (0 for exact duplicates)
    size: np.ndarray  # int64: shingles of the removed document (likewise)
    other_size: np.ndarray  # int64: shingles of the survivor (likewise)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def jaccard(self) -> np.ndarray:
        """Measured similarity of the two shingle sets: float64, 1 for exact duplicates."""
        union = np.maximum(self.size + self.other_size - self.shared, 1)
        return np.where(self.is_exact, 1.0, self.shared / union)

    @property
    def containment(self) -> np.ndarray:
        """Fraction of the removed document's shingles that are in the survivor: float64, 1 for exact duplicates."""
        return np.where(self.is_exact, 1.0, self.shared / np.maximum(self.size, 1))

    @property
    def bands(self) -> np.ndarray:
        """Number of band keys on which the two agree: int32, 0 for documents too short for fuzzy comparison."""
        agreeing = (self.sketches.keys[self.row] == self.sketches.keys[self.survivor]).sum(axis=1)
        return np.where(self.sketches.shingles[self.row] > 0, agreeing, 0).astype(np.int32)

    @property
    def kind(self) -> np.ndarray:
        """Either "exact" or "fuzzy" per removed document."""
        return np.where(self.is_exact, "exact", "fuzzy")

    def receipts(self) -> pa.Table:
        """Return RECEIPT_SCHEMA rows, one per removed document, sorted by id."""
        ids = self.sketches.ids
        columns = [
            ids.take(pa.array(self.row)).cast(pa.string()),
            ids.take(pa.array(self.survivor)).cast(pa.string()),
            pa.array(self.kind).cast(pa.string()),
            pa.array(self.jaccard),
            pa.array(self.containment),
            pa.array(self.bands),
        ]
        table = pa.table(columns, schema=RECEIPT_SCHEMA)
        return table.take(pc.sort_indices(table, sort_keys=[("id", "ascending"), ("survivor_id", "ascending")]))
