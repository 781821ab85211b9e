"""The table of duplicates on disk: any slice of it equals the slice of all rows, and the counts those of a Counter."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from dedup.receipts import RECEIPT_SCHEMA, Removals
from pipeline_lib.text_cleaning.duplicate_table import DuplicateReader, DuplicateTable


@dataclass
class Sketches:
    """Columns of documents that name their own row."""

    documents: int

    def take(self, rows, names):
        texts = pa.array([f"document {row}" for row in rows], pa.string())
        return [texts if name in ("id", "preview") else pa.array(rows, pa.int64()) for name in names]


def removals_of(rows: np.ndarray, survivors: np.ndarray, documents: int) -> Removals:
    numbers = np.arange(len(rows))
    return Removals(Sketches(documents), 0, 2, rows, survivors, numbers % 2 == 0, numbers, numbers + 1, numbers + 2)


@pytest.mark.parametrize("removed", [0, 1, 700])
def test_every_slice_has_the_rows_of_its_documents(tmp_path, monkeypatch, removed):
    monkeypatch.setattr("dedup.receipts.ROWS_PER_CHUNK", 64)
    rng = np.random.default_rng(removed)
    rows = np.sort(rng.choice(1000, removed, replace=False))
    survivors = rng.choice(np.setdiff1d(np.arange(1000), rows), removed)
    table = DuplicateTable.below(tmp_path)
    removals = removals_of(rows, survivors, 1000)
    table.write(removals, 1000)
    stands_for = Counter(survivors.tolist())
    with DuplicateReader(table) as reader:
        for first, end in [(0, 1000), (0, 0), (1000, 1000), *np.sort(rng.integers(0, 1001, (60, 2))).tolist()]:
            found = reader.between(first, end)
            chosen = np.flatnonzero((rows >= first) & (rows < end))
            assert found["row"].to_pylist() == (rows[chosen] - first).tolist()
            assert found.drop(["row"]).equals(removals.table(chosen)) and found.drop(["row"]).schema == RECEIPT_SCHEMA
            assert reader.between(first, end, ["kind"]).column_names == ["row", "kind"]
            assert reader.copies(first, end).tolist() == [stands_for[row] for row in range(first, end)]


def test_nothing_compared_is_a_table_without_rows(tmp_path):
    table = DuplicateTable.below(tmp_path)
    table.write(None, 5)
    with DuplicateReader(table) as reader:
        assert reader.between(0, 5).num_rows == 0 and reader.copies(0, 5).tolist() == [0] * 5
