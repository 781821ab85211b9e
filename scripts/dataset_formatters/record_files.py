"""The records of one file outside a run: JSON Lines, a JSON array or Parquet, as data sets are handed around."""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline_lib.data_file_names import split_suffix
from pipeline_lib.stage import UserError

NOT_JSON = object()
"""What stands for a line that is not JSON."""

NOT_UTF8 = object()
"""What stands for a record with half of a surrogate pair, which JSON can escape and no UTF-8 file can hold."""

_OPEN = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_READERS = ("json_lines", "json", "parquet")


def records_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where it stands, record) for every record of a file; its suffix tells how it is read.

    A line that is not JSON comes as NOT_JSON, a record that stage 01 drops as not UTF-8 as NOT_UTF8. A JSON array is
    read whole, everything else piece by piece. Raises UserError for a file that is not there or is damaged.
    """
    reader, compression = split_suffix(path.name)
    if reader not in _READERS or compression not in _OPEN:
        raise UserError(f"{path}: cannot be read here; use .jsonl, .json or .parquet (the former also as .gz .bz2 .xz)")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if reader == "parquet":
        yield from _rows(path)
        return
    with _opened(path, compression) as file:
        first = file.read(1)
        while first and first.isspace():
            first = file.read(1)
        is_array = reader == "json" and first == "["
    with _opened(path, compression) as file:
        for number, record in enumerate(_array(path, file) if is_array else _lines(path, file)):
            if reader == "json" and number == 0 and record[1] is NOT_JSON:
                raise UserError(f"{path}: a .json file holds an array of records or one a line, and this has neither")
            yield record


@contextmanager
def _opened(path: Path, compression: str) -> Iterator[IO[str]]:
    try:
        with _OPEN[compression](path, "rt", encoding="utf-8-sig") as file:
            yield file
    except (UnicodeDecodeError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(f"{path}: cannot be read to its end ({error})") from error


def _lines(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                value = json.loads(line)
                if "\\u" in line:
                    value = _utf8(value)
            except (ValueError, RecursionError):
                value = NOT_JSON
            yield f"{path.name}:{number}", value


def _utf8(record: Any) -> Any:
    """Return the record, or NOT_UTF8 for one with half of a surrogate pair."""
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return NOT_UTF8
    return record


def _array(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    try:
        text = file.read()
        records = json.loads(text)
        if "\\u" in text:
            records = [_utf8(record) for record in records]
        del text  # as large as the file, and nobody needs it while the records are used
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    for number, record in enumerate(records, start=1):
        yield f"{path.name}, record {number}", record


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=128):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name}, record {number}", row
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from error
