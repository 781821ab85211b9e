"""The shards that leave the stage: candidates without the duplicates, and a receipt for each of those."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import StageFailure, atomic_path, file_digest

from .duplicate_table import DuplicateReader, DuplicateTable
from .pieces import check_digest
from .receipts import EXACT, NEAR, PREVIEW_CHARACTERS, receipt_schema


@dataclass(frozen=True)
class FinalJob:
    """One shard: its candidates and their digests, the duplicates and the first row, the two files to write."""

    candidates: tuple[Path, ...]
    digests: tuple[str, ...]
    duplicates: DuplicateTable
    first: int
    output: Path
    receipts: Path
    jaccard: float


def write_final_shard(job: FinalJob) -> dict[str, Any]:
    """Write the documents that stay, with the column `duplicates` (how many each one stands for), and the receipts.

    Returns counts per source and the digest of the receipts. Raises StageFailure for damaged candidates,
    and for duplicates that were found among other ones.
    """
    for path, digest in zip(job.candidates, job.digests, strict=True):
        check_digest(path, digest)
    kept: Counter[tuple[str, str]] = Counter()
    dropped: Counter[tuple[str, str, str]] = Counter()
    schema = pq.read_schema(job.candidates[0]).append(pa.field("duplicates", pa.int32()))
    first = job.first
    with (
        DuplicateReader(job.duplicates) as duplicates,
        atomic_path(job.output) as output_path,  # a new file: the old one may have a name in the stage already
        atomic_path(job.receipts) as receipts_path,
        pq.ParquetWriter(output_path, schema, compression="zstd") as writer,
        pq.ParquetWriter(receipts_path, receipt_schema(), compression="zstd") as receipt_writer,
    ):
        for table in _row_groups(job.candidates):
            evidence = duplicates.between(first, first + table.num_rows)
            stays = np.ones(table.num_rows, np.bool_)
            stays[evidence["row"].to_numpy()] = False
            staying, leaving = table.filter(pa.array(stays)), table.filter(pa.array(~stays))
            if leaving["id"].to_pylist() != evidence["id"].to_pylist():
                raise StageFailure(f"the duplicates near row {first} are of other documents; start again with --force")
            counts = pa.array(duplicates.copies(first, first + table.num_rows)[stays])
            if staying.num_rows:  # a row group without rows would be one more thing for every reader to know
                writer.write_table(staying.append_column("duplicates", counts))
            receipts = _receipts(leaving, evidence, job.jaccard)
            first += table.num_rows
            receipt_writer.write_table(receipts)
            _count(staying, kept)
            _count_dropped(leaving, receipts, dropped)
    return {
        "kept": [[*key, n] for key, n in sorted(kept.items())],
        "dropped": [[*key, n] for key, n in sorted(dropped.items())],
        "digests": {"receipts": file_digest(job.receipts)},
    }


def wrote_everything(job: FinalJob, result: dict[str, Any]) -> bool:
    """Whether the two files of a shard are there."""
    return job.output.is_file() and job.receipts.is_file()


def _row_groups(files: tuple[Path, ...]) -> Iterator[pa.Table]:
    for file in files:
        with pq.ParquetFile(file) as shard:
            for group in range(shard.num_row_groups):
                yield shard.read_row_group(group, use_threads=False)


def _receipts(removed: pa.Table, evidence: pa.Table, threshold: float) -> pa.Table:
    columns = {
        "id": removed["id"],
        "source": removed["source"],
        "origin": removed["origin"],
        "rule": [EXACT if kind == "exact" else NEAR for kind in evidence["kind"].to_pylist()],
        "score": evidence["jaccard"],
        "threshold": [threshold] * removed.num_rows,
        "preview": pc.utf8_slice_codeunits(removed["text"], 0, PREVIEW_CHARACTERS),
        "survivor_id": evidence["survivor_id"],
        "jaccard": evidence["jaccard"],
        "containment": evidence["containment"],
        "bands": evidence["bands"],
        "survivor_preview": evidence["survivor_preview"],
    }
    return pa.Table.from_pydict(columns, schema=receipt_schema())


def _count(table: pa.Table, counts: Counter) -> None:
    for source, size in zip(table["source"].to_pylist(), pc.binary_length(table["text"]).to_pylist(), strict=True):
        counts[source, "documents"] += 1
        counts[source, "bytes"] += size


def _count_dropped(removed: pa.Table, receipts: pa.Table, counts: Counter) -> None:
    sizes = pc.binary_length(removed["text"]).to_pylist()
    for source, rule, size in zip(removed["source"].to_pylist(), receipts["rule"].to_pylist(), sizes, strict=True):
        counts[source, rule, "documents"] += 1
        counts[source, rule, "bytes"] += size
