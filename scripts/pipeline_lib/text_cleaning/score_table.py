"""scores.parquet: one row for every document that came in, with all its scores and the rule that removed it.

Texts are not in it, only their first characters, so that every question about thresholds is answered from a few columns
of numbers. The file names the settings that the scores depend on; when those change, the old scores say nothing about a
new run.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import json_digest

from .receipts import EXACT, NEAR

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline_lib.config.clean import CleanSettings

    from .duplicate_table import DuplicateTable

SCORES = "scores.parquet"
RULE = "rule"
ROWS_PER_CHUNK = 16_384  # of some forty columns: 5 MB
NOT_SCORES = ("id", "source", "preview", RULE)

_DECIDES_LINES = ("min_line_words", "max_word_characters")  # thresholds that rewrite texts before there is a score
_DECIDES_FATE = ("action",)
_JUDGES = ("quality_engine", "datatrove_words", "max_document_bytes", "dedup", "quality_rules", "exempt_sources")
_MEANS = ("max_ram", "engine")


def scores_table(table: "pa.Table", previews: "pa.Array", columns: Sequence[str], rules: "pa.Array") -> "pa.Table":
    """Return id, source, preview, the score columns, and the rule that removed each document (null where none did)."""
    chosen = table.select(["id", "source"])
    chosen = chosen.append_column("preview", previews)
    for name in columns:
        chosen = chosen.append_column(name, table[name])
    return chosen.append_column(RULE, rules)


def write_scores_file(
    parts: Sequence[Path], duplicates: "DuplicateTable", output: Path, settings: "CleanSettings"
) -> int:
    """Join score files in the order given, naming the duplicates too; return the number of rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .duplicate_table import DuplicateReader

    schema = pq.read_schema(parts[0])
    schema = schema.with_metadata({"scoring": json_digest(scoring_settings(settings))})
    rows = first = 0
    with (
        DuplicateReader(duplicates) as found,
        pq.ParquetWriter(output, schema, compression="zstd") as writer,
    ):
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    rule = table[RULE].to_numpy()
                    candidates = np.flatnonzero(table[RULE].is_null().to_numpy())
                    part = found.between(first, first + len(candidates), ["kind"])
                    names = [EXACT if kind == "exact" else NEAR for kind in part["kind"].to_pylist()]
                    rule[candidates[part["row"].to_numpy()]] = np.array(names, object)
                    first += len(candidates)
                    column = pa.array(rule, pa.string())
                    table = table.set_column(table.schema.get_field_index(RULE), RULE, column)
                    writer.write_table(table.cast(schema))
                    rows += table.num_rows
    return rows


def scoring_settings(settings: "CleanSettings") -> dict[str, Any]:
    """Return what texts and scores depend on: the settings without thresholds and without who applies them."""
    dumped = settings.model_dump(mode="json")
    kept: dict[str, Any] = {}
    for name, value in dumped.items():
        if name in (*_JUDGES, *_MEANS):
            continue
        if isinstance(value, dict):
            value = {
                key: item
                for key, item in value.items()
                if key in _DECIDES_LINES or not (key.startswith(("min_", "max_")) or key in (*_DECIDES_FATE, *_MEANS))
            }
        kept[name] = value
    if settings.remove_symbol_lines:
        kept["symbol_lines_stay"] = dumped["exempt_sources"]
    if "c4" in settings.quality_rules:
        kept["c4_rewrites"] = {
            "except": dumped["exempt_sources"],
            "engine": dumped["quality_engine"],
            "before": ["fineweb"],  # earlier scores were all of what C4 left
        }
    return kept


class ScoreFile:
    """scores.parquet of a finished run, read some rows at a time: it has a row for every document of the corpus."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self._path = path
        self.columns = frozenset(pq.read_schema(path).names)
        self.rows = pq.read_metadata(path).num_rows

    def chunks(self, columns: Sequence[str]) -> Iterator["pa.Table"]:
        """Yield these columns where the file has them, in its order, at most ROWS_PER_CHUNK rows at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        there = [name for name in dict.fromkeys(columns) if name in self.columns]
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(ROWS_PER_CHUNK, columns=there, use_threads=False):
                yield pa.Table.from_batches([batch])

    def documents(self, places: Iterable[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Return {place: {column: value}}; only the row groups that have these rows are read, one at a time."""
        import numpy as np
        import pyarrow.parquet as pq

        wanted = np.unique(np.fromiter(places, np.int64))
        found: dict[int, dict[str, Any]] = {}
        with pq.ParquetFile(self._path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.append(0, np.cumsum(sizes))
            groups = np.searchsorted(starts, wanted, side="right") - 1
            for group in np.unique(groups).tolist():
                here = wanted[groups == group]
                table = file.read_row_group(group, list(columns), use_threads=False).take(here - starts[group])
                found |= dict(zip(here.tolist(), table.to_pylist(), strict=True))
        return found


def open_scores(path: Path, settings: "CleanSettings") -> ScoreFile | None:
    """Return the scores at `path`; None when they were made with other scoring settings."""
    import pyarrow.parquet as pq

    scoring = (pq.read_schema(path).metadata or {}).get(b"scoring")
    return ScoreFile(path) if scoring == json_digest(scoring_settings(settings)).encode() else None
