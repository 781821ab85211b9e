"""licenses.json: under which licences the packed text stands, per source, counted in documents.

It lies beside the tokens, so that a cache that travels without the earlier stages still says what it was made of.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.stage import write_json_atomic

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage

LICENSES = "licenses.json"
UNSTATED = "not stated"


def count_licenses(shards: Sequence[Path]) -> dict[str, dict[str, int]]:
    """Return {source: {licence: documents}}; a document without one, or a shard without the column, is UNSTATED."""
    import pyarrow.parquet as pq

    counts: dict[str, Counter[str]] = {}
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            columns = [name for name in ("source", "license") if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                sources = batch.column("source").to_pylist()
                known = batch.column("license").to_pylist() if "license" in columns else [None] * len(sources)
                for source, licence in zip(sources, known, strict=True):
                    counts.setdefault(source, Counter())[licence or UNSTATED] += 1
    return {source: dict(sorted(counts[source].items())) for source in sorted(counts)}


def write_licenses(stage: "Stage", shards: Sequence[Path]) -> None:
    """Write licenses.json as an output of the stage."""
    write_json_atomic(stage.work / LICENSES, {"documents_by_source_and_license": count_licenses(shards)})
    stage.adopt(LICENSES)
