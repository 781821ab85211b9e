"""A packing plan in memory: per packed sequence of a split, the pieces it consists of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError, file_digest


@dataclass(frozen=True)
class SplitTable:
    """The pieces of one split, sorted by sequence, one array entry each.

    chunk, document, start and length as in the file; position: where a piece begins among its chunk's tokens;
    pieces: int64 [sequences + 1], where each sequence begins; bounds: int64 [chunks + 1], where the sequences of each
    chunk of the split begin; parts: int64 [parts + 1], where each part's chunks begin among those of the split.
    """

    chunk: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    position: np.ndarray
    pieces: np.ndarray
    bounds: np.ndarray
    parts: np.ndarray

    @property
    def sequences(self) -> int:
        """How many sequences the split has."""
        return len(self.pieces) - 1


class Plan:
    """The plan of one context length (28 bytes per piece)."""

    def __init__(self, folder: Path, entry: dict[str, Any], index: dict[str, Any], command: str):
        """Read the file that an entry of the index lists. Raises UserError when it is missing or damaged.

        command: what makes this cache, for messages.
        """
        files = entry.get("files") or [entry]  # a cache that is still being made has one per part
        for path, digest in ((folder / file["file"], file["digest"]) for file in files):
            if not path.is_file() or file_digest(path) != digest:
                raise UserError(
                    f"{path} is missing or damaged (its checksum differs); make it again with: {command} --mode repair"
                )
        self.context: int = entry["context"]
        self.rows_digests: list[str] = entry["chunks"]
        self._chunks = index["chunks"]
        self._part_count = len(index["parts"])
        self._columns = self._by_split([_columns(folder / file["file"]) for file in files])
        self._splits = {split: self._split(split) for split in ("train", "val")}

    def split(self, name: str) -> SplitTable:
        """Return the pieces of `train` or `val`."""
        return self._splits[name]

    def _by_split(self, parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the columns of all parts with the rows of `train` before those of `val`, as one file has them."""
        if len(parts) == 1:
            return parts[0]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        is_val = np.array([chunk["split"] == "val" for chunk in self._chunks], bool)
        order = np.argsort(is_val[joined["chunk"]], kind="stable")
        return {name: column[order] for name, column in joined.items()}

    def _split(self, name: str) -> SplitTable:
        numbers = [number for number, chunk in enumerate(self._chunks) if chunk["split"] == name]
        is_mine = np.array([chunk["split"] == name for chunk in self._chunks], bool)
        rows = np.flatnonzero(is_mine[self._columns["chunk"]]) if len(self._columns["chunk"]) else np.zeros(0, int)
        mine = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)  # rows are sorted by split
        columns = {key: column[mine] for key, column in self._columns.items()}
        sequence = columns.pop("sequence")
        pieces = np.searchsorted(sequence, np.arange(int(sequence[-1]) + 2 if len(sequence) else 1))
        bounds = np.searchsorted(columns["chunk"][pieces[:-1]], [*numbers, len(self._chunks)])
        part_of = [self._chunks[number]["part"] for number in numbers]
        parts = np.searchsorted(part_of, np.arange(self._part_count + 1))
        return SplitTable(**columns, pieces=pieces, bounds=bounds, parts=parts)


def _columns(path: Path) -> dict[str, np.ndarray]:
    # Neither pq.read_table nor to_numpy: both load pandas, which costs a third of a second before the first step.
    with pq.ParquetFile(path) as file:
        table = file.read()
    return {name: np.from_dlpack(table[name].combine_chunks()) for name in table.column_names}
