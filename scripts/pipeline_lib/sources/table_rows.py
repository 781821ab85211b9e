"""Rows of CSV and Parquet files as dictionaries, in memory bounded by a small batch of rows."""

import codecs
import csv
import datetime
import decimal
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ..stage import UserError
from .base import Dropped
from .compressed import open_bytes
from .rows import MAX_ROW_BYTES, WHOLE, Row, Share, damaged

_BATCH_ROWS = 128
_BATCH_BYTES = 8_000_000
_READ_BUFFER = 8 << 20
"""Bytes asked of a Parquet column at a time: small enough for memory, large enough for one request over a network."""


def read_csv(path: Path, label: str, compression: str) -> Iterator[Row | Dropped]:
    """Rows of a comma-separated file whose first line names the fields (RFC 4180, UTF-8); values are strings."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with open_bytes(path, label, compression) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        header = _csv_header(reader, label)
        number = 0
        while header:
            begin = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if reader.line_num > begin:  # a quote took the rows behind it along: nobody can say how many
                    problem = f"a quote that opens in line {begin} or after it is not closed"
                    raise damaged(label, f"{problem} (line {reader.line_num}: {error})") from error
                number += 1
                yield Dropped(f"not CSV: {error}"[:80], where=f"{label}:{begin}")
                continue
            if values:
                number += 1
                yield _csv_row(header, values, number, f"{label}:{reader.line_num}")


def _csv_header(reader: Any, label: str) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise damaged(label, f"its first line is not CSV ({error})") from error
    if len(set(header)) < len(header) or (header and not all(name.strip() for name in header)):
        raise UserError(f"{label}:1: the first line of a CSV file must name each field once, it is {header}")
    return header


def _csv_row(header: list[str], values: list[str], number: int, where: str) -> Row | Dropped:
    size = sum(len(value.encode("utf-8", "surrogateescape")) + 1 for value in values)
    if len(values) != len(header):
        return Dropped("not as many CSV fields as the header", bytes=size, where=where)
    if any(_has_surrogate(value) for value in values):
        return Dropped("not UTF-8", bytes=size, where=where)
    return Row(dict(zip(header, values, strict=True)), f"#{number}", where, size)


def _has_surrogate(text: str) -> bool:
    try:
        codecs.encode(text, "utf-8")
    except UnicodeEncodeError:
        return True
    return False


def read_parquet(
    file: Path | BinaryIO, label: str, share: Share = WHOLE, fields: list[str] | None = None
) -> Iterator[Row | Dropped]:
    """Rows of the row groups that start in this share of the file.

    `fields` (dots descend) limits what is read to their columns; the first must exist. Values that JSON has no type
    for become ISO 8601 strings (times) or decimal strings; a binary column is refused. Raises UserError for a damaged
    file or a missing column. `file` may be any seekable binary stream, so a remote file is read by ranges.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(file, buffer_size=_READ_BUFFER, pre_buffer=False)
        with parquet:
            columns = _columns(parquet.schema_arrow, label, fields)
            unread = tuple(name for name in parquet.schema_arrow.names if name not in columns)
            odd = any(not _is_plain(parquet.schema_arrow.field(column).type, label, column) for column in columns)
            for group, number in _groups_of_share(parquet, file, share):
                rows = _rows_per_batch(parquet.metadata.row_group(group), columns)
                for batch in parquet.iter_batches(rows, [group], columns, use_threads=False):
                    size = batch.nbytes // max(1, batch.num_rows)
                    for row in _batch_rows(batch, label, number, size, unread):
                        yield replace(row, record=plain(row.record)) if odd and isinstance(row, Row) else row
                    number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk, not the file
            raise
        raise damaged(label, str(error).splitlines()[0]) from error


def _rows_per_batch(group: Any, columns: list[str]) -> int:
    """How many rows of a row group are held at a time: fewer where they are long."""
    chunks = (group.column(place) for place in range(group.num_columns))
    size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, size)))


def _columns(schema: Any, label: str, fields: list[str] | None) -> list[str]:
    if fields is None:
        return list(schema.names)
    wanted = [field if field in schema.names else field.partition(".")[0] for field in fields]
    if wanted[0] not in schema.names:
        raise UserError(f"{label} has no column '{wanted[0]}', it has {', '.join(schema.names)}; set `text_field`")
    return sorted({column for column in wanted if column in schema.names})


def _groups_of_share(parquet: Any, file: Path | BinaryIO, share: Share) -> Iterator[tuple[int, int]]:
    """(row group, number of its first row in the file) of the groups whose first byte lies in the share."""
    if isinstance(file, Path):
        size = file.stat().st_size
    else:
        size = file.seek(0, io.SEEK_END)
    start, end = share.bounds(size)
    first_row = 0
    for group in range(parquet.metadata.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        column = metadata.column(0)
        begin = column.data_page_offset
        if column.dictionary_page_offset:
            begin = min(begin, column.dictionary_page_offset)
        if start <= begin < end:
            yield group, first_row
        first_row += metadata.num_rows


def _batch_rows(batch: Any, label: str, number: int, size: int, unread: tuple[str, ...]) -> Iterator[Row | Dropped]:
    try:
        records = batch.to_pylist()
    except UnicodeDecodeError:  # Parquet does not enforce UTF-8; find the rows that break it
        records = [_decode_row(batch, index) for index in range(batch.num_rows)]
    for index, record in enumerate(records):
        where = f"{label}, row {number + index + 1}"
        if record is None:
            yield Dropped("not UTF-8", bytes=size, where=where)
        else:
            yield Row(record, f"#{number + index + 1}", where, size, unread)


def _decode_row(batch: Any, index: int) -> dict[str, Any] | None:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None


def _is_plain(type_: Any, label: str, column: str) -> bool:
    """Whether JSON has a type for every value of the column. Raises UserError for a column of raw bytes."""
    import pyarrow.types as types

    if types.is_binary(type_) or types.is_large_binary(type_) or types.is_fixed_size_binary(type_):
        raise UserError(f"{label}: column '{column}' holds raw bytes, which a text record cannot carry")
    if types.is_nested(type_):
        children = [_is_plain(type_.field(index).type, label, column) for index in range(type_.num_fields)]
        return all(children) and not types.is_map(type_)
    if types.is_dictionary(type_):
        return _is_plain(type_.value_type, label, column)
    return types.is_string(type_) or types.is_large_string(type_) or types.is_integer(type_) or types.is_boolean(type_)


def plain(value: Any) -> Any:
    """The value with JSON types only: not-a-number and infinity become null, times ISO 8601, decimals strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, decimal.Decimal) else value
