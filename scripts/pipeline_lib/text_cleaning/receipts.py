"""removed.parquet: one row for every document that did not stay, with the evidence (`--why`, in fates.py, reads it)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

PREVIEW_CHARACTERS = 200
RECEIPTS = "removed.parquet"
EXACT, NEAR = "exact_duplicate", "near_duplicate"


def receipt_schema() -> "pa.Schema":
    """Return the columns of removed.parquet.

    origin: where stage 01 read the document (file:line, file and row or byte), empty for a source without files; rule:
    the setting that removed the document, "exact_duplicate" or "near_duplicate"; score and threshold: what was
    compared; survivor_id: the document that stays instead, or for contamination the evaluation record that was copied;
    jaccard, containment: of the word shingles of the two documents; bands: how many bands of their MinHash signatures
    agree (0: compared exactly only); survivor_preview: the first characters of the one that stays. These four are null
    for the other rules.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    return pa.schema(
        [
            ("id", text),
            ("source", text),
            ("origin", text),
            ("rule", text),
            ("score", number),
            ("threshold", number),
            ("preview", pa.large_string()),
            ("survivor_id", text),
            ("jaccard", number),
            ("containment", number),
            ("bands", pa.int32()),
            ("survivor_preview", pa.large_string()),
        ]
    )


def write_receipts(parts: list[Path], output: Path) -> int:
    """Join receipt files, in the order given, into one; return the number of rows."""
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(output, receipt_schema(), compression="zstd") as writer:
        for part in parts:
            table = pq.read_table(part)
            rows += table.num_rows
            if table.num_rows:
                writer.write_table(table)
    return rows
