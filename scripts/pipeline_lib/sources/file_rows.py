"""The rows of one data file, whatever its format, and how many shares it may be read in."""

from collections.abc import Iterator
from pathlib import Path

from ..config.sources import FORMATS_WITH_LISTS, SourceSettings
from ..data_file_names import DOCUMENT_READERS, split_suffix
from ..stage import UserError
from .base import Dropped
from .document_rows import read_html, read_text
from .json_rows import read_json, read_json_lines
from .rows import WHOLE, Row, Share
from .table_rows import read_csv, read_parquet
from .warc_rows import read_warc

SHARE_BYTES = 64 << 20
"""Size of a share of a large file, bytes: the most work that a killed run repeats."""


def shares_of(name: str, size: int) -> int:
    """How many shares a file of `size` bytes falls into; 1 for a format that can only be read from its beginning."""
    reader, compression = split_suffix(name)
    splittable = (
        reader == "parquet"
        or (reader == "json_lines" and not compression)
        or (reader == "warc" and compression == ".gz" and ".arc" not in name)
    )
    return max(1, -(-size // SHARE_BYTES)) if splittable else 1


def check_readable(name: str, settings: SourceSettings) -> None:
    """Raises UserError when no reader takes the file, or its format cannot hold records of the source's kind."""
    reader, _ = split_suffix(name)
    if settings.kind != "text" and reader in DOCUMENT_READERS:
        raise UserError(
            f"{name}: a source of kind {settings.kind} needs records, and this suffix holds documents; "
            "use .jsonl, .json, .parquet or .csv"
        )


def rows_of_file(path: Path, label: str, settings: SourceSettings, share: Share = WHOLE) -> Iterator[Row | Dropped]:
    """Rows of the file's share in file order. `label` is the file's name in keys and messages."""
    reader, compression = split_suffix(label)
    lists = settings.record_format in FORMATS_WITH_LISTS
    if reader == "json_lines":
        return read_json_lines(path, label, compression, share, lists)
    if reader == "json":
        return read_json(path, label, compression, lists)
    if reader == "parquet":
        return read_parquet(path, label, share, parquet_fields(settings))
    if reader == "csv":
        return read_csv(path, label, compression)
    if reader == "text":
        return read_text(path, label, compression, settings.document_separator)
    if reader == "html":
        return read_html(path, label, compression)
    return read_warc(path, label, compression, share)


def parquet_fields(settings: SourceSettings) -> list[str] | None:
    """The fields to read from Parquet: those a text record is made of, or all of them for the other kinds."""
    if settings.kind != "text":
        return None
    optional = (settings.id_field, settings.url_field, settings.license_field)
    return [settings.text_field, *(field for field in optional if field)]


def label_suffix_is_document(label: str) -> bool:
    """Whether the file holds documents, whose rows already have the fields `text` and `url`."""
    return split_suffix(label)[0] in DOCUMENT_READERS
