"""Dedup from parquet to parquet: the entry for people who have a folder of shards and want a smaller one.

Writes `deduplicated.parquet` (the input's columns, the input's order, without the removed rows) and `removed.parquet`
(one receipt per removed row), each whole or not at all. The text is read three times (sketches, real shingle sets of
the candidates, copy); nothing but the sketches is held in memory. Works with a GPU as well: the device only computes
signatures, and they have the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError, atomic_path

from .corpus import Corpus
from .parameters import DedupParameters
from .receipts import Removals
from .removals import find_removals

OUTPUT_NAME = "deduplicated.parquet"
RECEIPTS_NAME = "removed.parquet"
GIB = 1024**3


@dataclass(frozen=True)
class DedupSummary:
    """What a run did; `documents == kept + exact + fuzzy`."""

    documents: int
    kept: int
    exact: int
    fuzzy: int
    recall_at_threshold: float
    """Chance that the band search sees a pair whose similarity is exactly the threshold."""
    output: Path
    """The folder with deduplicated.parquet and removed.parquet."""


def fuzzy_dedup(
    input_path: str | Path,
    output_path: str | Path,
    parameters: DedupParameters | None = None,
    *,
    text_column: str = "text",
    id_column: str = "id",
    workers: int = 1,
    scratch: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> DedupSummary:
    """Write `input_path` (a parquet file or a folder of them) without exact and fuzzy duplicates to `output_path`.

    A file without `id_column` is fine: its receipts carry the digest of the normalised text as id. Ids may repeat: rows
    are told apart by position. `scratch` (default: the output folder) takes a temporary file. Raises UserError for
    unusable input, StageFailure from the wipe-out guard; then nothing is written.
    """
    parameters = parameters or DedupParameters()
    say = say or (lambda line: None)
    output = Path(output_path)
    corpus = Corpus(input_files(Path(input_path), output), text_column, id_column)
    corpus.check()
    _check_one_schema(corpus)
    say(f"dedup: {corpus.rows()} documents in {len(corpus.files)} files")
    removals = find_removals(corpus, parameters, workers, Path(scratch) if scratch else output)
    exact = int(np.count_nonzero(removals.is_exact))
    documents = len(removals.sketches)
    fuzzy = len(removals) - exact
    say(f"dedup: {exact} exact and {fuzzy} fuzzy duplicates, {documents - len(removals)} documents stay")
    _write_kept(corpus, removals, output / OUTPUT_NAME)
    with atomic_path(output / RECEIPTS_NAME) as temporary:
        pq.write_table(removals.receipts(), temporary, compression="zstd")
    return DedupSummary(
        documents=documents,
        kept=documents - len(removals),
        exact=exact,
        fuzzy=fuzzy,
        recall_at_threshold=parameters.candidate_probability(parameters.jaccard),
        output=output,
    )


def input_files(path: Path, output: Path) -> tuple[Path, ...]:
    """Return the parquet files of a file or folder. Raises UserError for none, or when the output lies among them."""
    if path.is_dir() and path.resolve() == output.resolve():
        raise UserError(f"dedup: input and output are the same folder, {path}; the output would be input next time")
    files = (path,) if path.is_file() else tuple(sorted(path.glob("*.parquet")))
    if not files:
        raise UserError(f"dedup: no parquet files at {path}; give a .parquet file or a folder that holds some")
    return files


def _check_one_schema(corpus: Corpus) -> None:
    first = pq.read_schema(corpus.files[0])
    for file in corpus.files[1:]:
        if not pq.read_schema(file).equals(first):
            raise UserError(
                f"dedup: {file} has other columns or types than {corpus.files[0]}; write both with the same schema"
            )


def _write_kept(corpus: Corpus, removals: Removals, path: Path) -> None:
    stays = np.ones(len(removals.sketches), np.bool_)
    stays[removals.row] = False
    schema = pq.read_schema(corpus.files[0])
    first = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in corpus.tables():
            writer.write_table(table.filter(pa.array(stays[first : first + len(table)])))
            first += len(table)


def cpu_dedup_streaming(
    input_path: str,
    output_path: str,
    text_column: str = "text",
    id_column: str = "id",
    similarity_threshold: float = 0.8,
    memory_info: dict | None = None,
    show_progress: bool = True,
) -> str:
    """Dedup on one CPU core with word 5-grams; returns the output folder.

    `memory_info` (as from get_memory_info) never changes the answer: where it says that the sketches would not fit into
    the free memory, UserError is raised before any work is done.
    """
    parameters = DedupParameters(jaccard=similarity_threshold, containment=similarity_threshold, device="cpu")
    corpus = Corpus(input_files(Path(input_path), Path(output_path)), text_column, id_column)
    corpus.check()
    need = corpus.rows() * parameters.bytes_per_document
    free = (memory_info or {}).get("ram_free_gb")
    if free is not None and need > free * GIB:
        raise UserError(
            f"dedup: {corpus.rows()} documents need about {need / GIB:.1f} GB of memory and {free:.1f} GB are free; "
            "free some memory or dedup fewer files at a time"
        )
    summary = fuzzy_dedup(
        input_path,
        output_path,
        parameters,
        text_column=text_column,
        id_column=id_column,
        say=print if show_progress else None,
    )
    return str(summary.output)
