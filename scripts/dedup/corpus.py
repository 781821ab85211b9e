"""The documents of a dedup run: parquet shards, cut into pieces that are read batch by batch.

A piece is some row groups of one file, the unit of work that is resumed and spread over workers. Rows, not ids, name
documents inside the package (ids can repeat in other people's files): rows count over all pieces in the order of the
files. A batch holds about BYTES_PER_BATCH of text, whatever the size of a row group, and the reader streams a column
through a buffer of READ_BUFFER bytes, so that files with row groups larger than the memory are read all the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError

from .held_text import HeldText
from .normalise import TextBatch

BYTES_PER_BATCH = 1 << 21
BYTES_PER_PIECE = 64 << 20
MOST_ROWS_PER_READ = 8192
READ_BUFFER = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Some row groups of one file; `first` is the row of the whole corpus where it begins."""

    file: Path
    groups: tuple[int, ...]
    first: int
    rows: int
    row_in_file: int
    bytes: int


@dataclass(frozen=True)
class Corpus:
    """Parquet shards with a text column; id, source and quality columns are used where they exist."""

    files: tuple[Path, ...]
    text_column: str = "text"
    id_column: str = "id"
    source_column: str = "source"
    quality_column: str = "quality"
    held: HeldText | None = field(default=None, compare=False, repr=False)
    """Where text that was read is kept for the next reading; None: it is read from the files each time."""

    def check(self) -> None:
        """Look at the files anew, as every run does at its beginning.

        Raises UserError for no files, a file that cannot be read, and a column that is missing or of no use.
        """
        self.__dict__.pop("_seen", None)
        if not self.files:
            raise UserError("dedup: no input files; give at least one parquet file")
        for file in self.files:
            try:
                schema = pq.read_schema(file)
            except FileNotFoundError:
                raise UserError(f"dedup: {file} does not exist; check the input path") from None
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"dedup: {file} is not a readable parquet file ({error}); make it again") from None
            if self.text_column not in schema.names:
                names = ", ".join(schema.names)
                raise UserError(f"dedup: {file} has no column {self.text_column!r}; it has {names}")
            self._check_types(file, schema)

    def _check_types(self, file: Path, schema: pa.Schema) -> None:
        for name, fits, what in (
            (self.text_column, _is_text, "strings"),
            (self.id_column, _can_be_spelled, "strings or numbers"),
            (self.source_column, _can_be_spelled, "strings or numbers"),
            (self.quality_column, _is_numeric, "numbers"),
        ):
            if name in schema.names and not fits(schema.field(name).type):
                raise UserError(f"dedup: column {name!r} of {file} is {schema.field(name).type}; it must hold {what}")

    def rows(self) -> int:
        """Return the number of documents."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def pieces(self) -> list[Piece]:
        """The pieces of all files, by ascending rows."""
        return [piece for pieces in self.pieces_of_files for piece in pieces]

    @property
    def pieces_of_files(self) -> list[list[Piece]]:
        """Each file cut into pieces of about BYTES_PER_PIECE, never across a row group."""
        return self._seen[1]

    @property
    def statuses(self) -> dict[Path, dict[str, Any]]:
        """What `file_status` said of each file before its footer was read."""
        return self._seen[0]

    def refuse_changes(self, files: Iterable[Path] | None = None) -> None:
        """Raise UserError when one of these files (None: of all) is not the one any more whose footer was read."""
        for file in self.files if files is None else files:
            if not file.is_file() or file_status(file) != self.statuses[file]:
                raise file_changed(file)

    @cached_property
    def _seen(self) -> tuple[dict[Path, dict[str, Any]], list[list[Piece]]]:
        """Status and pieces of each file; footers are read once per run, which asks for them again and again."""
        statuses: dict[Path, dict[str, Any]] = {}
        files: list[list[Piece]] = []
        first = 0
        for file in self.files:
            statuses[file] = file_status(file)
            metadata = pq.read_metadata(file)
            pieces: list[Piece] = []
            row_in_file, groups, rows, size = 0, [], 0, 0
            for group in range(metadata.num_row_groups):
                this = metadata.row_group(group)
                if groups and size + this.total_byte_size > BYTES_PER_PIECE:
                    pieces.append(Piece(file, tuple(groups), first, rows, row_in_file, size))
                    first, row_in_file, groups, rows, size = first + rows, row_in_file + rows, [], 0, 0
                groups.append(group)
                rows += this.num_rows
                size += this.total_byte_size
            pieces.append(Piece(file, tuple(groups), first, rows, row_in_file, size))
            first += rows
            files.append(pieces)
        return statuses, files

    def read(self, piece: Piece, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of a piece in order, with those of `columns` (None: all) that the file has."""
        tables = self.held.get(piece) if self.held else None
        if tables is None and self.held and self.held.may_hold(piece):
            tables = self.held.keep(piece, self._stream(piece, None))
        if tables is None:
            yield from self._stream(piece, columns)
            return
        for table in tables:
            yield table if columns is None else table.select([name for name in columns if name in table.column_names])

    def _stream(self, piece: Piece, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        rows = int(np.clip(BYTES_PER_BATCH * piece.rows // max(piece.bytes, 1), 16, MOST_ROWS_PER_READ))
        read = piece.row_in_file
        try:
            with pq.ParquetFile(piece.file, buffer_size=READ_BUFFER) as shard:
                present = None if columns is None else [name for name in columns if name in shard.schema_arrow.names]
                for batch in shard.iter_batches(rows, list(piece.groups), columns=present, use_threads=False):
                    yield pa.Table.from_batches([batch])
                    read += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"dedup: {piece.file} cannot be read from row {read} on ({error}); make it again") from None


def file_status(file: Path) -> dict[str, Any]:
    """Return what a file is known by without being read, as JSON: its path, its size and its time of modification."""
    status = file.stat()
    return {"file": str(file.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def file_changed(file: Path) -> UserError:
    """Return the error that names a file which is not the one any more that a run began with."""
    return UserError(f"dedup: {file} changed while it was being deduplicated; start again when nothing writes to it")


def _values(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    value = _values(kind)
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def _is_numeric(kind: pa.DataType) -> bool:
    value = _values(kind)
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    return any(test(value) for test in tests) and _casts(kind, pa.float32())


def _can_be_spelled(kind: pa.DataType) -> bool:
    return (_is_text(kind) or _is_numeric(kind) or pa.types.is_temporal(kind)) and _casts(kind, pa.large_string())


def _casts(kind: pa.DataType, target: pa.DataType) -> bool:
    try:
        pa.nulls(0, kind).cast(target)
    except pa.ArrowNotImplementedError:
        return False
    return True


def large_strings(column: pa.ChunkedArray) -> pa.Array:
    """Return a string column of any kind as one large_string array, not copied if it is one already; nulls stay."""
    chunks = column.cast(pa.large_string()).chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays([pa.array([], pa.large_string()), *chunks])


def bytes_of(array: pa.Array) -> TextBatch:
    """Return a large_string array without nulls as bytes and starts, without copying."""
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8) if offsets else np.zeros(1, np.int64)
    return TextBatch(np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8), starts)


def text_batch(column: pa.ChunkedArray) -> TextBatch:
    """Return a text column as bytes and starts; null counts as empty."""
    return bytes_of(pc.fill_null(large_strings(column), ""))
