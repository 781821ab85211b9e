"""The documents of a dedup run: parquet shards read batch by batch, and what is remembered of each document.

Reading is one thread, hashing is `workers` threads (the kernels and Arrow release the interpreter lock), at most two
batches per worker are in flight, and results come back in reading order: neither worker count nor the way documents
are spread over files shows in the answer. Rows, not ids, identify documents inside the package: ids can repeat in
other people's files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError

from .normalise import TextBatch

ROWS_PER_READ = 2048
BYTES_PER_BATCH = 8 << 20


@dataclass(frozen=True)
class Corpus:
    """Parquet shards with a text column; id, source and quality columns are used where they exist."""

    files: tuple[Path, ...]
    text_column: str = "text"
    id_column: str = "id"
    source_column: str = "source"
    quality_column: str = "quality"

    def check(self) -> None:
        """Raise UserError for no files, a file that cannot be read or a missing or non-text text column."""
        if not self.files:
            raise UserError("dedup: no input files; give at least one parquet file")
        for file in self.files:
            try:
                schema = pq.read_schema(file)
            except FileNotFoundError:
                raise UserError(f"dedup: {file} does not exist; check the input path") from None
            except pa.ArrowInvalid as error:
                raise UserError(f"dedup: {file} is not a readable parquet file ({error}); make it again") from None
            if self.text_column not in schema.names:
                names = ", ".join(schema.names)
                raise UserError(f"dedup: {file} has no column {self.text_column!r}; it has {names}")
            if not _is_text(schema.field(self.text_column).type):
                found = schema.field(self.text_column).type
                raise UserError(f"dedup: column {self.text_column!r} of {file} is {found}; it must hold strings")

    def rows(self) -> int:
        """Return the number of documents (from the files' footers)."""
        return sum(pq.read_metadata(path).num_rows for path in self.files)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield all rows in order, ROWS_PER_READ at a time, with those of `columns` (None: all) that the file has."""
        for path in self.files:
            with pq.ParquetFile(path) as shard:
                present = None if columns is None else [name for name in columns if name in shard.schema_arrow.names]
                for batch in shard.iter_batches(ROWS_PER_READ, columns=present, use_threads=False):
                    yield pa.Table.from_batches([batch])

    def where(self, position: int) -> str:
        """Return "file:row" of a document, counted from 0, for messages."""
        for path in self.files:
            rows = pq.read_metadata(path).num_rows
            if position < rows:
                return f"{path}:{position}"
            position -= rows
        raise IndexError("there is no such document")

    def preview(self, position: int, characters: int = 120) -> str:
        """Return the start of a document's text on one line (reads one row group)."""
        for path in self.files:
            with pq.ParquetFile(path) as shard:
                for group in range(shard.num_row_groups):
                    rows = shard.metadata.row_group(group).num_rows
                    if position < rows:
                        column = shard.read_row_group(group, [self.text_column], use_threads=False).column(0)
                        text = column[position].as_py() or ""
                        return " ".join(text[: 4 * characters].split())[:characters]
                    position -= rows
        raise IndexError("there is no such document")


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def text_batch(column: pa.ChunkedArray) -> TextBatch:
    """Return a string column as bytes and starts, without copying where Arrow allows; null counts as empty."""
    array = pc.fill_null(column.cast(pa.large_string()), "").combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of a table's column, depending on the Arrow version
        array = array.chunk(0) if array.num_chunks else pa.array([], pa.large_string())
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    return TextBatch(np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8), starts)


def split_by_size(batch: TextBatch) -> Iterator[tuple[int, TextBatch]]:
    """Yield (first document, part) with parts of about BYTES_PER_BATCH, never cutting a document."""
    first = 0
    while first < len(batch):
        last = int(np.searchsorted(batch.starts, batch.starts[first] + BYTES_PER_BATCH, side="right")) - 1
        last = min(max(last, first + 1), len(batch))
        yield first, TextBatch(batch.data, batch.starts[first : last + 1])
        first = last
