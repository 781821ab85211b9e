"""Which reader a file name asks for, and the byte stream behind a compressed one.

Only names decide, never the content: a wrong guess about content would turn a broken download into "text".
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..stage import UserError
from .rows import damaged

READER_OF_SUFFIX = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".warc": "warc",
    ".wet": "warc",
    ".arc": "warc",
}
COMPRESSIONS = (".gz", ".zst")
UNCOMPRESSED_ONLY = ("parquet",)
DOCUMENT_READERS = ("text", "html", "warc")
"""Readers of running text: their files hold documents, not records, and so serve only sources of kind text."""


def split_suffix(name: str) -> tuple[str, str]:
    """Return (reader, compression suffix or "") for a file name. Raises UserError for one that no reader takes."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    reader = READER_OF_SUFFIX.get(suffixes[-1]) if suffixes else None
    if reader is None or (compression and reader in UNCOMPRESSED_ONLY):
        known = " ".join(READER_OF_SUFFIX)
        raise UserError(
            f"{name}: no reader for this suffix; use one of {known} (all but .parquet may end in .gz or .zst)"
        )
    return reader, compression


def is_readable(name: str) -> bool:
    """Whether some reader takes a file of this name."""
    try:
        split_suffix(name)
    except UserError:
        return False
    return True


@contextmanager
def open_bytes(path: Path, label: str, compression: str) -> Iterator[BinaryIO]:
    """Open the file's content, decompressed in passing. Raises UserError inside the block for a broken stream."""
    try:
        if compression == ".gz":
            with gzip.open(path, "rb") as stream:
                try:
                    yield stream
                except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                    place = f"after {stream.tell():,} bytes of its content"
                    raise damaged(label, f"its .gz stream is broken {place} ({error})") from error
        elif compression == ".zst":
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as stream:
                yield io.BufferedReader(_Zstandard(stream), 1 << 20)
        else:
            with open(path, "rb", buffering=1 << 20) as stream:
                yield stream
    except _ZstandardError as error:
        raise damaged(label, f"its {compression} stream is broken ({error})") from error


class _ZstandardError(Exception):
    """Arrow reports a broken stream as OSError, which must stay apart from a disk that cannot be read."""


class _Zstandard(io.RawIOBase):
    def __init__(self, stream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if error.errno is not None:
                raise
            raise _ZstandardError(error) from error
        buffer[: len(data)] = data
        return len(data)
