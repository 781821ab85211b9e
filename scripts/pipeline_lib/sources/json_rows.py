"""JSON records from a stream: one object per line, or one array of objects, in memory bounded by one record.

Where the format of the source has it (`lists`), a record may also be a list of objects: a chat as its bare turns.
A line belongs to the share of the file in which its first byte lies, so shares of a file can be read in any order
and together give every line exactly once. Trap: a `.json` file may hold either shape, and an array may put its whole
content on one line of gigabytes; the first character tells them apart.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from .base import Dropped
from .compressed import open_bytes
from .rows import MAX_ROW_BYTES, WHOLE, Row, Share, damaged

_CHUNK = 1 << 18
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json_lines(
    path: Path, label: str, compression: str, share: Share = WHOLE, lists: bool = False
) -> Iterator[Row | Dropped]:
    """Rows of a file with one JSON object per line; blank lines are not rows. A share needs an uncompressed file."""
    with open_bytes(path, label, compression) as stream:
        if share.count == 1:
            yield from _lines(stream, label, 0, None, lists)
        else:
            start, end = share.bounds(path.stat().st_size)
            if start:
                stream.seek(start - 1)
                start += _skip_rest(stream) - 1
            yield from _lines(stream, label, start, end, lists)


def read_json(path: Path, label: str, compression: str, lists: bool = False) -> Iterator[Row | Dropped]:
    """Rows of a `.json` file: an array of objects, or one object per line."""
    with open_bytes(path, label, compression) as stream:
        first = stream.read(1)
        while first and first in b" \t\r\n\xef\xbb\xbf":
            first = stream.read(1)
        if first == b"[":
            yield from _array(stream, label, lists)
            return
    rows = read_json_lines(path, label, compression, lists=lists)
    for number, row in enumerate(rows):
        if number == 0 and isinstance(row, Dropped):
            raise damaged(label, "a .json file holds an array of records or one record per line, and this has neither")
        yield row


def _lines(stream: BinaryIO, label: str, start: int, end: int | None, lists: bool) -> Iterator[Row | Dropped]:
    position, line_number = start, 0
    while end is None or position < end:
        line = stream.readline(MAX_ROW_BYTES + 1)
        if not line:
            return
        offset, line_number = position, line_number + 1
        place = f"{label}:{line_number}" if start == 0 else f"{label}, byte {offset}"
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            length = len(line) + _skip_rest(stream)
            position += length
            yield Dropped(f"record longer than {MAX_ROW_BYTES >> 20} MiB", bytes=length, where=place)
            continue
        position += len(line)
        if offset == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.isspace():
            row = parse_row(line, f"@{offset}", place, lists)
            del line  # up to 64 MiB that nobody needs while the row is used
            yield row
            del row


def parse_row(line: bytes, key: str, where: str, lists: bool = False) -> Row | Dropped:
    """One row from the bytes of one JSON object, or the drop that says what is wrong with them."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return Dropped("not UTF-8", bytes=len(line), where=where)
    except (ValueError, RecursionError):
        return Dropped("not JSON", bytes=len(line), where=where)
    return _checked(record, key, where, len(line), b"\\u" in line, lists)


def _checked(record: Any, key: str, where: str, size: int, suspicious: bool, lists: bool) -> Row | Dropped:
    if lists and isinstance(record, list):
        if not all(isinstance(part, dict) for part in record):
            return Dropped("not a list of JSON objects", bytes=size, where=where)
    elif not isinstance(record, dict):
        return Dropped("not a JSON object", bytes=size, where=where)
    if suspicious:  # an escaped half of a surrogate pair is legal JSON that no UTF-8 file can hold
        try:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return Dropped("not UTF-8", bytes=size, where=where)
    return Row(record, key, where, size)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _skip_rest(stream: BinaryIO) -> int:
    """Read to the end of the line in hand and return how many bytes that was."""
    skipped = 0
    while piece := stream.readline(_CHUNK):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _array(stream: BinaryIO, label: str, lists: bool) -> Iterator[Row | Dropped]:
    """Rows of an array whose opening bracket has been read; each element is parsed as soon as it is whole."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # broken bytes stay visible in their own row
    buffer, position, number, ended, comma_due = "", 0, 0, False, False
    while True:
        position = _SPACE.match(buffer, position).end()
        if comma_due and buffer.startswith(",", position):
            position, comma_due = _SPACE.match(buffer, position + 1).end(), False
        if buffer.startswith("]", position):
            _nothing_follows(stream, utf8, buffer[position + 1 :], label)
            return
        if position < len(buffer) and not comma_due:
            record, end = _element(decoder, buffer, position)
            if end < len(buffer):  # something follows it, so it is whole: a number could go on in the next chunk
                number += 1
                source, position, comma_due = buffer[position:end], end, True
                size = len(source.encode("utf-8", "surrogateescape"))
                suspicious = "\\u" in source or not source.isascii()
                yield _checked(record, f"#{number}", f"{label}, record {number}", size, suspicious, lists)
                continue
        elif position < len(buffer):
            raise damaged(label, f"no comma or bracket after record {number}")
        if ended or len(buffer) - position > MAX_ROW_BYTES:
            raise damaged(label, f"not valid JSON after record {number}")
        data = stream.read(max(_CHUNK, len(buffer) - position))  # doubling: the attempts at one long record stay linear
        ended = not data
        buffer, position = buffer[position:] + utf8.decode(data, final=ended), 0


def _nothing_follows(stream: BinaryIO, utf8: codecs.IncrementalDecoder, rest: str, label: str) -> None:
    """Read to the end of the stream. Raises UserError when more than white space is there, such as a second array."""
    data = b"]"
    while data:
        data = stream.read(_CHUNK)
        rest += utf8.decode(data, final=not data)
        if not _SPACE.fullmatch(rest):
            raise damaged(label, "something follows the array")
        rest = ""


def _element(decoder: json.JSONDecoder, buffer: str, position: int) -> tuple[Any, int]:
    """The element that starts at `position` and its end; the end is the buffer's length when it is not whole yet."""
    try:
        return decoder.raw_decode(buffer, position)
    except (ValueError, RecursionError):
        return None, len(buffer)
