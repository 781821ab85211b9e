"""The byte stream behind a compressed file."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from .rows import damaged

_DECOMPRESSORS = {".bz2": bz2.BZ2Decompressor, ".xz": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)}
_BUFFER = 1 << 20


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
