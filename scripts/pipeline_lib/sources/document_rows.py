"""Documents from files of running text: .txt and .md as they are, .html through main-text extraction.

Each yields rows {"text", "url"}. Markdown stays Markdown: its marks are what a model should learn to write.
"""

from collections.abc import Iterator
from pathlib import Path

from ..stage import UserError
from .base import Dropped
from .compressed import open_bytes
from .rows import MAX_ROW_BYTES, Row

MAX_PAGE_BYTES = 16 << 20
"""The largest HTML page that is parsed, bytes: the parser's tree needs many times the size of the page."""


def read_text(path: Path, label: str, compression: str, separator: str | None) -> Iterator[Row | Dropped]:
    """One document per file, or, with `separator`, one per stretch between lines that consist of it.

    Raises UserError for a file too large to be one document when no separator is given.
    """
    with open_bytes(path, label, compression) as stream:
        if separator is None:
            data = stream.read(MAX_ROW_BYTES + 1)
            if len(data) > MAX_ROW_BYTES:
                raise UserError(
                    f"{label} is longer than {MAX_ROW_BYTES >> 20} MiB, too large for one document; "
                    "set `document_separator` to the line that separates its documents, or split the file"
                )
            yield _document(data, "", label)
            return
        wanted, pieces, size, number, first_line = separator.encode(), [], 0, 1, 1
        for line_number, line in enumerate(stream, 1):
            if line.strip() != wanted.strip():
                size += len(line)
                if size <= MAX_ROW_BYTES:
                    pieces.append(line)
                continue
            if size:
                yield _separated(pieces, size, number, f"{label}:{first_line}")
            pieces, size, number, first_line = [], 0, number + 1, line_number + 1
        if size:
            yield _separated(pieces, size, number, f"{label}:{first_line}")


def _separated(pieces: list[bytes], size: int, number: int, where: str) -> Row | Dropped:
    if size > MAX_ROW_BYTES:
        return Dropped(f"record longer than {MAX_ROW_BYTES >> 20} MiB", bytes=size, where=where)
    return _document(b"".join(pieces), f"#{number}", where)


def _document(data: bytes, key: str, where: str) -> Row | Dropped:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Dropped("not UTF-8", bytes=len(data), where=where)
    if "\x00" in text:
        return Dropped("binary, not text", bytes=len(data), where=where)
    return Row({"text": text.replace("\r\n", "\n").replace("\r", "\n"), "url": ""}, key, where, len(data))


def read_html(path: Path, label: str, compression: str) -> Iterator[Row | Dropped]:
    """The main text of one HTML page."""
    with open_bytes(path, label, compression) as stream:
        yield page_row(stream.read(MAX_PAGE_BYTES + 1), "", "", label)


def page_row(page: bytes, url: str, key: str, where: str) -> Row | Dropped:
    """A row with the page's main text (no menus, comments or footers), or the reason why there is none.

    When in doubt a block is left out: F1 0.975 instead of 0.965 on the gold pages (benchmarks/extraction.py).
    """
    import trafilatura

    if len(page) > MAX_PAGE_BYTES:
        return Dropped(f"page longer than {MAX_PAGE_BYTES >> 20} MiB", bytes=len(page), where=where)
    try:
        text = trafilatura.extract(
            page, url=url or None, include_comments=False, include_tables=True, favor_precision=True
        )
    except RecursionError:
        return Dropped("page nested too deeply", bytes=len(page), where=where)
    if not text:
        return Dropped("no main text", bytes=len(page), where=where)
    return Row({"text": text, "url": url}, key, where, len(page))
