"""The two kinds of file that stage 01 writes: Parquet shards of text, and JSON lines of original records.

A sink opens its files through a unit of the stage, so they appear under their names only when the whole unit is
committed. Memory is bounded by one row group of text (8 MB), whatever the size of a shard.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import xxhash

from ..stage import Unit, UserError
from .base import Record

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

COLUMNS = ("id", "text", "source", "url", "origin", "license")
ROW_GROUP_BYTES = 8_000_000


def shard_name(index: int) -> str:
    """Name of a text shard inside the stage folder."""
    return f"part-{index:05d}.parquet"


def document_id(source: str, key: str, text: bytes) -> str:
    """`source-` and 32 hexadecimal digits: from source, key and content (UTF-8), never from position."""
    digest = xxhash.xxh3_128(f"{source}\0{key}\0".encode())
    digest.update(text)
    return f"{source}-{digest.hexdigest()}"


def text_schema() -> pa.Schema:
    """Columns of a text shard: id, text, source, url, origin, license, all strings."""
    import pyarrow as pa

    return pa.schema([pa.field(name, pa.string(), nullable=False) for name in COLUMNS])


class ShardSink:
    """Text records into zstd Parquet shards of about `shard_bytes` of text each."""

    def __init__(self, unit: Unit, source: str, license: str, first_shard: int, shard_bytes: int):
        self.files: list[str] = []
        self._unit, self._source, self._license = unit, source, license
        self._first_shard, self._shard_bytes = first_shard, shard_bytes
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[tuple[str | bytes, ...]] = []
        self._group_bytes = self._filled = 0

    def add(self, record: Record) -> int:
        """Add one text record; return its size in bytes of UTF-8. Raises UnicodeEncodeError on lone surrogates."""
        text = record["text"].encode("utf-8")  # once: a document may have 64 MiB
        size = len(text)
        licence = record.get("license") or self._license
        identity = document_id(self._source, record["key"], text)
        self._rows.append((identity, text, self._source, record["url"], record.get("origin", ""), licence))
        self._group_bytes += size
        self._filled += size
        if self._group_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if self._filled >= self._shard_bytes:
            self.close()
        return size

    def close(self) -> None:
        """Finish the shard in hand; the next record opens another one."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._filled = None, 0

    def _flush(self) -> None:
        if not self._rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = text_schema()
        if self._writer is None:
            name = shard_name(self._first_shard + len(self.files))
            self.files.append(name)
            self._writer = pq.ParquetWriter(self._unit.path(name), schema, compression="zstd")
        columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        self._rows, self._group_bytes = [], 0


class LineSink:
    """Records of the other kinds, unchanged, one per line as JSON in UTF-8."""

    def __init__(self, unit: Unit, source: str, name: str):
        self.files = [name]
        self._source = source
        self._lines = 0
        self._stream = open(unit.path(name), "wb")  # noqa: SIM115 closed by close(), after many calls of add()

    def add(self, record: Record) -> int:
        """Add one record; return its size in bytes. Raises UnicodeEncodeError on lone surrogates, UserError on
        values that JSON does not have."""
        try:
            line = json.dumps(record, ensure_ascii=False) + "\n"
        except (TypeError, ValueError) as error:
            raise UserError(f"source '{self._source}': record {self._lines + 1} is not JSON: {error}") from None
        data = line.encode("utf-8")
        self._stream.write(data)
        self._lines += 1
        return len(data)

    def close(self) -> None:
        """Finish the file; an empty one is a file too."""
        self._stream.close()


Sink = ShardSink | LineSink


def totals(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Documents, bytes and files of several units together."""
    return {
        "files": [file for result in results for file in result["files"]],
        "documents": sum(result["documents"] for result in results),
        "bytes": sum(result["bytes"] for result in results),
    }
