"""Which reader a file name asks for.

Only names decide, never the content: a wrong guess about content would turn a broken download into "text".
"""

from pathlib import PurePosixPath

from .stage import UserError

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
