"""Which reader a file name asks for, and the byte stream behind a compressed one.

Only names decide, never the content: a wrong guess about content would turn a broken download into "text".
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

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
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_DECOMPRESSORS = {".bz2": bz2.BZ2Decompressor, ".xz": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)}
_BUFFER = 1 << 20
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
            f"{name}: no reader for this suffix; use one of {known}"
            f" (all but .parquet may end in {', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]})"
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
                yield io.BufferedReader(_Zstandard(stream), _BUFFER)
        elif compression:
            with open(path, "rb", buffering=0) as stream:
                yield io.BufferedReader(_EveryStream(stream, _DECOMPRESSORS[compression]), _BUFFER)
        else:
            with open(path, "rb", buffering=_BUFFER) as stream:
                yield stream
    except _BrokenStream as error:
        raise damaged(label, f"its {compression} stream is broken ({error})") from error


class _BrokenStream(Exception):
    """Arrow and bz2 report one as OSError, which must stay apart from a disk that cannot be read."""


class _EveryStream(io.RawIOBase):
    """The content of a .bz2 or .xz file: one stream or several, written back to back as pbzip2 does it.

    Trap: bz2.open and lzma.open take whatever is behind the first stream and does not begin like one for padding, so
    the first bytes of a later stream can break and the rest of the file is gone without a word.
    """

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self._file, self._new = file, decompressor
        self._decompressor = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = b""
        while not data:
            compressed = b""
            if self._decompressor.eof:
                compressed = self._behind_the_stream()
                if not compressed:
                    return 0
                self._decompressor = self._new()
            elif self._decompressor.needs_input and not (compressed := self._file.read(_BUFFER)):
                raise _BrokenStream("it ends early")
            try:
                data = self._decompressor.decompress(compressed, len(buffer))
            except (OSError, ValueError, lzma.LZMAError) as error:
                raise _BrokenStream(error) from error
        buffer[: len(data)] = data
        return len(data)

    def _behind_the_stream(self) -> bytes:
        """The first bytes of the next stream, empty at the end of the file; xz pads streams with zeros."""
        block = self._decompressor.unused_data or self._file.read(_BUFFER)
        while block and not block.strip(b"\0"):
            block = self._file.read(_BUFFER)
        return block.lstrip(b"\0")


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
            raise _BrokenStream(error) from error
        buffer[: len(data)] = data
        return len(data)
