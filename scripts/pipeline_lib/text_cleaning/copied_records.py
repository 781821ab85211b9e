"""contamination.parquet: which evaluation records stand in the training text, before and after this stage.

What is compared: the records of the tasks that stage 11 will ask (`evaluate.tasks`), and no others. One row per record,
also for those that nobody copied, so that stage 11 can tell three things apart: not found, found, and too short to be
found. `documents` counts in what came in, `documents_kept` in the very shards that leave the stage.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.stage import Stage

    from .contamination import EvaluationIndex, Matches

COPIED_RECORDS = "contamination.parquet"


@dataclass(frozen=True)
class ComparedSets:
    """The evaluation files to compare with, and what is left out: tasks without records, records without a task."""

    files: tuple[str, ...]
    tasks_without_records: tuple[str, ...]
    files_without_task: tuple[str, ...]


def asked_sources(config: "RunConfig") -> dict[str, str]:
    """Return {task: evaluation source} of `evaluate.tasks`. Raises UserError for a bad task file."""
    from pipeline_lib.config.task_files import read_task_files

    return {name: task.source for name, task in read_task_files(config.evaluate).items()}


def compared_sets(stage: "Stage") -> ComparedSets:
    """Return the files of 01_download that hold the records of the run's tasks, in the order of their names."""
    entries = json.loads(stage.input("01_download").file("sources.json").read_bytes())["sources"]
    files = {entry["name"]: entry["files"] for entry in entries if entry["kind"] == "eval"}
    asked = asked_sources(stage.config)
    wanted = {file for source in asked.values() for file in files.get(source, ())}
    return ComparedSets(
        tuple(sorted(wanted)),
        tuple(task for task, source in asked.items() if source not in files),
        tuple(sorted({file for names in files.values() for file in names} - wanted)),
    )


class CopiedRecords:
    """Counts, over batches, the documents that share an n-gram with each evaluation record."""

    def __init__(self, index: "EvaluationIndex"):
        self._index = index
        self.documents = np.zeros(len(index.records), np.int64)
        self.examples: dict[int, str] = {}

    def add(self, matches: "Matches", ids: "pa.ChunkedArray | pa.Array") -> None:
        """Count one batch; ids: of its documents."""
        if not len(matches.documents):
            return
        shared, first = self._index.documents_per_record(matches)
        self.documents += shared
        for record in np.flatnonzero(shared).tolist():
            self.examples.setdefault(record, ids[int(first[record])].as_py())

    def write(self, path: Path) -> None:
        """Write one row per record that was found: record, documents, example."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = np.flatnonzero(self.documents)
        columns = {
            "record": pa.array(found, pa.int64()),
            "documents": pa.array(self.documents[found], pa.int64()),
            "example": pa.array([self.examples[record] for record in found.tolist()], pa.string()),
        }
        pq.write_table(pa.table(columns), path, compression="zstd")

    def read(self, path: Path) -> None:
        """Add what `write` wrote."""
        import pyarrow.parquet as pq

        for row in pq.read_table(path).to_pylist():
            self.documents[row["record"]] += row["documents"]
            self.examples.setdefault(row["record"], row["example"])


def count_in_shards(index: "EvaluationIndex", shards: Sequence[Path]) -> CopiedRecords:
    """Return what is still in the shards that leave the stage; only documents marked as copies are read."""
    kept = CopiedRecords(index)
    for table in _marked(shards):
        kept.add(index.matches(table["text"].combine_chunks()), table["id"])
    return kept


def _marked(shards: Sequence[Path]) -> Iterator["pa.Table"]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for path in shards:
        with pq.ParquetFile(path) as shard:
            for group in range(shard.num_row_groups):
                marks = shard.read_row_group(group, ["contamination"])["contamination"]
                if pc.any(pc.greater(marks, 0)).as_py():
                    table = shard.read_row_group(group, ["id", "text"], use_threads=False)
                    yield table.filter(pc.greater(marks, 0))


def write_copied_records(
    index: "EvaluationIndex", found: CopiedRecords, kept: CopiedRecords, sets: ComparedSets, output: Path
) -> dict[str, Any]:
    """Write contamination.parquet and return {compared, found, kept}: numbers of evaluation records.

    Columns: record (`eval/<file>:<line>`), ngrams (different ones; 0: too short to be found), documents,
    documents_kept, example (id of the first document). The schema's metadata names the files that were compared.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    examples = [found.examples.get(record) for record in range(len(index.records))]
    table = pa.table(
        {
            "record": pa.array(index.records, pa.string()),
            "ngrams": pa.array(index.ngrams, pa.int64()),
            "documents": pa.array(found.documents, pa.int64()),
            "documents_kept": pa.array(kept.documents, pa.int64()),
            "example": pa.array(examples, pa.string()),
        }
    )
    about = {"files": json.dumps(sets.files), "ngram": str(index.ngram)}
    pq.write_table(table.replace_schema_metadata(about), output, compression="zstd")
    return {
        "compared": table.num_rows,
        "found": int((found.documents > 0).sum()),
        "kept": int((kept.documents > 0).sum()),
    }
