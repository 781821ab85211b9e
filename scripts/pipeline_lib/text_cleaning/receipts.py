"""removed.parquet: one row for every document that did not stay, with the evidence; and `--why`, which reads it."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.stage import UserError

if TYPE_CHECKING:
    import pyarrow as pa

PREVIEW_CHARACTERS = 200
RECEIPTS = "removed.parquet"
SHOWN_COPIES = 5
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


def explain(stage_folder: Path, identity: str) -> list[str]:
    """Return the lines that tell one document's fate. Raises UserError when this stage has never seen it."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    receipts = stage_folder / RECEIPTS
    if not receipts.is_file():
        raise UserError(f"{receipts} does not exist; run this script without --why first")
    if not pq.read_schema(receipts).equals(receipt_schema()):
        raise UserError(f"{receipts} was written by another version of this stage; run this script without --why first")
    wanted = pc.field("id") == identity
    removed = pq.read_table(receipts, filters=wanted).to_pylist()
    if removed:
        return _explain_removal(removed[0])
    for part in sorted(stage_folder.glob("part-*.parquet")):
        kept = pq.read_table(part, filters=wanted).to_pylist()
        if kept:
            replaced = (pc.field("survivor_id") == identity) & pc.field("rule").isin([EXACT, NEAR])
            copies = pq.read_table(receipts, filters=replaced).to_pylist()
            return _explain_survival(part, kept[0], copies)
    raise UserError(
        f"no document {identity!r} in {stage_folder}; ids are in the `id` column of 01_download/part-*.parquet"
    )


def _explain_removal(row: dict) -> list[str]:
    lines = [f"{row['id']} (source {row['source']}) was removed by {row['rule']}", *_place(row)]
    if row["rule"] in (EXACT, NEAR):
        lines.append(f"  stays instead: {row['survivor_id']}")
        lines.append(f"  {_similarity(row)} (removed from Jaccard {row['threshold']:g})")
        return [*lines, f"  removed: {row['preview']!r}", f"  stays:   {row['survivor_preview']!r}"]
    score = "told by datatrove only as passed or not" if row["score"] is None else f"{row['score']:g}"
    lines.append(f"  score {score}, threshold {row['threshold']:g}")
    if row["survivor_id"]:
        lines.append(f"  shares text with {row['survivor_id']}")
    return [*lines, f"  text: {row['preview']!r}"]


def _place(row: dict) -> list[str]:
    """Where the document was read, and its URL when it is known: receipts keep the first, shards both."""
    known = [("read from", row["origin"]), ("url", row.get("url"))]
    return [f"  {name} {place}" for name, place in known if place]


def _similarity(row: dict) -> str:
    found = f"Jaccard {row['jaccard']:.3f}, containment {row['containment']:.3f}"
    return f"{found}, {row['bands']} MinHash bands agree" if row["bands"] else f"{found}, compared exactly"


def _explain_survival(part: Path, row: dict, copies: list[dict]) -> list[str]:
    lines = [f"{row['id']} (source {row['source']}) stays, in {part.name}", *_place(row)]
    for name, value in row.items():
        if name not in ("id", "source", "text", "url", "origin", "license"):
            lines.append(f"  {name} {value:g}" if isinstance(value, float) else f"  {name} {value}")
    lines.append(f"  text: {row['text'][:PREVIEW_CHARACTERS]!r}")
    for copy in sorted(copies, key=lambda copy: (-copy["jaccard"], copy["id"]))[:SHOWN_COPIES]:
        lines += [f"  stays instead of {copy['id']}: {_similarity(copy)}", f"    removed: {copy['preview']!r}"]
    if len(copies) > SHOWN_COPIES:
        lines.append(f"  and of {len(copies) - SHOWN_COPIES} more")
    return lines
