"""Documents from web archives: WARC responses and resources through main-text extraction, WET conversions as they are.

A crawl archive is one gzip member per record, written back to back. That makes it splittable: a share of the file
starts at the first member whose decompressed bytes begin with a WARC version line. Records that are not pages (the
requests, the crawl's own notes) are not documents and are passed over; a page that cannot be used is a drop.
Trap: a server's text is whatever it sent, so a 404 page, an image or a truncated body must not become a document.
Trap: warcio hands on the bytes of a content encoding that it cannot undo, and what it undid of one that breaks.
Trap: Wget writes its own log and arguments as resource records of type text/plain, under addresses of metadata://.
Trap: warcio takes a gzip stream that breaks or ends early for the end of the archive. Nobody knows how many records
were behind it, so that is a damaged file; a drop is only a record whose own length is wrong.
"""

import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from .base import Dropped
from .compressed import open_bytes
from .document_rows import MAX_PAGE_BYTES, page_row
from .rows import WHOLE, Row, Share, damaged

HTML_TYPES = ("text/html", "application/xhtml+xml")
PLAIN_TYPE = "text/plain"
PAGE_SCHEMES = ("http:", "https:", "ftp:", "file:")
"""Beginnings of the addresses of resources that somebody published; others hold the crawler's own notes."""
TRUNCATION_REASONS = ("length", "time", "disconnect", "unspecified")
"""What WARC-Truncated may say (WARC 1.1, section 5.13); a crawler may have words of its own."""
CONTENT_CODINGS = ("gzip", "deflate", "br", "zstd", "compress", "dcb", "dcz", "aes128gcm", "exi", "pack200-gzip")
"""What a body can be encoded with (IANA's registry of HTTP content codings). Servers say other words, like `none` and
`UTF-8`, of bodies that are not encoded."""
_OLD_NAMES = {"x-gzip": "gzip", "x-compress": "compress"}  # RFC 9110, section 8.4.1
_GZIP_MAGIC = b"\x1f\x8b\x08"
_WINDOW, _HEAD = 1 << 18, 4096


def read_warc(path: Path, label: str, compression: str, share: Share = WHOLE) -> Iterator[Row | Dropped]:
    """Rows of the records that start in this share of the archive. A share needs a gzip member per record.

    Raises UserError, with the byte, for an archive that is broken or ends inside a record.
    """
    start, end = share.bounds(path.stat().st_size) if share.count > 1 else (0, None)
    with open_bytes(path, label, "" if compression == ".gz" else compression) as stream:
        if start:
            start = next_member(stream, start, end)
            stream.seek(start)
        if end is not None and start >= end:
            return
        for offset, record in _records(stream, label, compression == ".gz"):
            if end is not None and offset >= end:
                return
            row = _record_row(record, label, offset)
            if row is not None:
                yield row


def _records(stream: BinaryIO, label: str, gzipped: bool) -> Iterator[tuple[int, Any]]:
    """Yield (byte where it begins, record) to the end of the archive, which must be the end of a record."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.bufferedreaders import BufferedReader
    from warcio.exceptions import ArchiveLoadFailed

    if "br" in BufferedReader.DECOMPRESSORS:  # brotli is installed
        BufferedReader.DECOMPRESSORS["br"] = BrotliStream
    records = ArchiveIterator(stream, arc2warc=True)
    records.reader = _reader_of_whole_members()(records.fh, label)
    record, begin = None, 0
    try:
        for record in records:
            begin = records.offset
            if not (record.rec_headers.get_header("Content-Length") or "").strip().isdigit():
                raise damaged(label, f"the record at byte {begin} has no length")
            yield begin, record
    except ArchiveLoadFailed as error:
        problem = " ".join(str(error).split())[:160]
        problem = f"after the record at byte {begin}: {problem} (`warcio recompress` may repair it)"
        raise damaged(label, problem) from error
    except AttributeError as error:  # warcio's, at a page without an address: its headers are cut or broken
        raise damaged(label, f"the record at byte {records.offset} lacks headers that it must have") from error
    cut_in_the_body = record is not None and not gzipped and record.raw_stream.limit > 0
    if cut_in_the_body or records.offset != records.fh.tell():
        raise damaged(label, f"it ends inside the record at byte {begin if cut_in_the_body else records.offset}")


@cache
def _reader_of_whole_members() -> type:
    """warcio's reader of gzip members, made to report a broken or unfinished one."""
    from warcio.bufferedreaders import DecompressingBufferedReader

    class WholeMembers(DecompressingBufferedReader):
        def __init__(self, stream: Any, label: str):
            super().__init__(stream)
            self._label = label

        def _process_read(self, data: bytes) -> None:
            if not data and self.decompressor and self.num_block_read and not self.decompressor.eof:
                raise damaged(self._label, f"its gzip stream ends early, at byte {self.stream.tell()}")
            super()._process_read(data)

        def _decompress(self, data: bytes) -> bytes:
            if self.decompressor and data and (self.num_block_read or data.startswith(_GZIP_MAGIC)):
                try:
                    return self.decompressor.decompress(data)
                except zlib.error as error:
                    problem = f"its gzip stream is broken, before byte {self.stream.tell()} ({error})"
                    raise damaged(self._label, problem) from error
            return super()._decompress(data)

    return WholeMembers


class BrotliStream:
    """A brotli decompressor with the names that those of zlib have.

    Trap: warcio calls methods and sets attributes that objects of brotli do not have, and after an error they do not
    even say whether they have finished.
    """

    unused_data = b""

    def __init__(self):
        import brotli

        self._decompressor = brotli.Decompressor()
        self._broken = False

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was seen."""
        return not self._broken and self._decompressor.is_finished()

    def decompress(self, data: bytes) -> bytes:
        """Return what these bytes add to the page. Raises brotli.error."""
        try:
            return b"" if self._broken else self._decompressor.process(data)
        except Exception:
            self._broken = True
            raise


def next_member(stream: BinaryIO, start: int, end: int) -> int:
    """Offset of the first gzip member that starts at or after `start` and holds a WARC record, else at least `end`."""
    position = start
    while position < end:
        stream.seek(position)
        window = stream.read(_WINDOW + _HEAD)
        found = window.find(_GZIP_MAGIC)
        while 0 <= found < _WINDOW:
            if _starts_record(window[found : found + _HEAD]):
                return position + found
            found = window.find(_GZIP_MAGIC, found + 1)
        position += _WINDOW
    return end


def _starts_record(data: bytes) -> bool:
    try:
        return zlib.decompressobj(wbits=31).decompress(data, 8).startswith(b"WARC/")
    except zlib.error:
        return False


def _record_row(record: Any, label: str, offset: int) -> Row | Dropped | None:
    url = record.rec_headers.get_header("WARC-Target-URI") or ""
    published = record.rec_type == "resource" and url.lower().startswith(PAGE_SCHEMES)
    if record.rec_type not in ("response", "conversion") and not published:
        return None
    where = f"{label}, byte {offset}"
    encoding = _content_encoding(record)
    if encoding:
        record.http_headers.replace_header("Content-Encoding", encoding)  # where warcio looks what to undo
    stream = record.content_stream()
    body = stream.read(MAX_PAGE_BYTES + 1)
    if problem := _problem(record, encoding, stream, body):
        return Dropped(problem, bytes=len(body), where=where)
    if record.rec_type == "conversion" or _content_type(record) == PLAIN_TYPE:
        return _plain_text(body, url, f"@{offset}", where)
    return page_row(body, url, f"@{offset}", where)


def _problem(record: Any, encoding: str, stream: Any, body: bytes) -> str | None:
    """Why the record, whose `body` was read from `stream`, is no document; None when it may be one."""
    from warcio.bufferedreaders import BufferedReader

    whole = len(body) <= MAX_PAGE_BYTES
    if record.raw_stream.limit and whole:
        return "archive record cut short"
    answer = record.http_headers
    if record.rec_type == "response" and (answer is None or answer.get_statuscode() != "200"):
        return "HTTP status is not 200"
    if record.rec_type != "conversion" and _content_type(record) not in (*HTML_TYPES, PLAIN_TYPE):
        return "neither HTML nor plain text"
    if truncated := (record.rec_headers.get_header("WARC-Truncated") or "").strip().lower():
        return f"cut by the crawler ({truncated if truncated in TRUNCATION_REASONS else 'unspecified'})"
    if not encoding:
        return None
    if encoding not in BufferedReader.get_supported_decompressors():
        return f"content encoding {encoding} is not supported"
    return f"content encoding {encoding} is broken" if whole and _is_undecoded(stream, body) else None


def _content_type(record: Any) -> str:
    headers = record.http_headers if record.rec_type == "response" else record.rec_headers
    return (headers.get_header("Content-Type") or "").partition(";")[0].strip().lower()


def _content_encoding(record: Any) -> str:
    """The codings of the body, each once, in the order in which they were applied; empty when it has none."""
    said = (record.http_headers.get_header("Content-Encoding") or "") if record.http_headers else ""
    words = (word.strip() for word in said.lower().split(","))
    names = dict.fromkeys(_OLD_NAMES.get(word, word) for word in words)
    return ", ".join(name for name in names if name in CONTENT_CODINGS)


def _is_undecoded(stream: Any, body: bytes) -> bool:
    """Whether some of the body was not decoded: none of it, or what is behind the place where the encoding breaks.

    A body that is not encoded at all, whatever the header says, makes warcio give up its decompressor. So does one that
    breaks before anything came of it; there is no zero byte in a page, and hardly an encoded one without.
    """
    if stream.decompressor is None:
        return body.startswith(_GZIP_MAGIC) or b"\0" in body
    return body.startswith(_GZIP_MAGIC) or (bool(body) and not stream.decompressor.eof)


def _plain_text(body: bytes, url: str, key: str, where: str) -> Row | Dropped:
    if len(body) > MAX_PAGE_BYTES:
        return Dropped(f"page longer than {MAX_PAGE_BYTES >> 20} MiB", bytes=len(body), where=where)
    try:
        return Row({"text": body.decode("utf-8"), "url": url}, key, where, len(body))
    except UnicodeDecodeError:
        return Dropped("not UTF-8", bytes=len(body), where=where)
