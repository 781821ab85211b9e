"""What `--plan` says about stage 02: clean and deduplicate a few megabytes for real, and scale up by bytes."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dedup.removals import find_duplicates
from pipeline_lib.stage import Estimate, Stage
from pipeline_lib.stage.memory import own_peak_bytes

from .corpus import QUALITY_MODEL, dedup_parameters, evaluation_files
from .memory_share import fitting_workers, memory_limit
from .pieces import PIECE_BYTES, text_shards
from .shard import INPUT_COLUMNS, ROWS_PER_BATCH, DocumentCleaner, Tally

PROBE_BYTES = 2_000_000
START_SECONDS = 3.0  # starting the workers and loading the compiled code, measured on two cores
SKETCH_BYTES = 256  # what deduplication remembers of one document


def estimate_cleaning(stage: Stage) -> Estimate:
    """Return the expected cost of the whole stage. Compilation is left out: it happens once per machine."""
    files = text_shards(stage)
    documents = sum(pq.read_metadata(file).num_rows for file in files)
    sample = first_documents(files)
    if not sample.num_rows:
        return Estimate(None, None, None, "01_download has no documents")
    with tempfile.TemporaryDirectory() as folder:
        quality_model = _quality_model(stage, files, Path(folder))
        cleaner = DocumentCleaner(stage.settings, evaluation_files(stage), stage.seed, quality_model)
    cleaner.clean(sample.slice(0, 1), Tally())
    started = time.perf_counter()
    kept = cleaner.clean(sample, Tally()).kept
    cleaning = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part-00000.parquet"
        pq.write_table(kept, path, compression="zstd")
        disk = path.stat().st_size
        deduplication = _seconds_of_deduplication(stage, kept, Path(folder)) if kept.num_rows else 0.0
    scale = documents / sample.num_rows
    pieces = -(-int(scale * sample.nbytes) // PIECE_BYTES)
    wanted = min(stage.threads, max(pieces, len(files)))
    workers = fitting_workers(wanted, memory_limit(stage.settings), stage.settings)
    return Estimate(
        seconds=START_SECONDS + scale * (cleaning / workers + deduplication / stage.threads),
        memory_bytes=(workers + (workers > 1)) * own_peak_bytes() + documents * SKETCH_BYTES,
        disk_bytes=int(2 * scale * disk),
        basis=f"{sample.num_rows} documents cleaned and deduplicated on one core, scaled to {documents}",
    )


def _seconds_of_deduplication(stage: Stage, documents: pa.Table, folder: Path) -> float:
    """Return what deduplicating the documents takes on one core, without what starting it takes."""
    if not stage.settings.dedup.enabled:
        return 0.0
    parameters = dedup_parameters(stage.settings.dedup, stage.seed)
    # The guard judges whole sources: what it would say of a sample must not end the estimate.
    parameters = replace(parameters, max_removed_fraction=1.0, max_cluster=documents.num_rows)
    seconds = []
    for name, part in (("warm", documents.slice(0, 1)), ("start", documents.slice(0, 1)), ("all", documents)):
        path = folder / f"{name}-00000.parquet"
        pq.write_table(part, path, compression="zstd")
        started = time.perf_counter()
        find_duplicates([path], parameters, 1, folder / f"scratch-{name}")
        seconds.append(time.perf_counter() - started)
    return max(seconds[2] - seconds[1], 0.0)


def _quality_model(stage: Stage, files: list[Path], folder: Path) -> Path | None:
    if not stage.settings.quality_model.examples:
        return None
    from .quality_examples import train_on_examples

    model, _ = train_on_examples(stage.settings, files, stage.seed)
    model.save(folder / QUALITY_MODEL)
    return folder / QUALITY_MODEL


def first_documents(files: list[Path]) -> pa.Table:
    """Return documents from the start of the first shards, about PROBE_BYTES of them."""
    batches: list[pa.Table] = []
    size = 0
    for file in files:
        with pq.ParquetFile(file) as shard:
            for batch in shard.iter_batches(64, columns=list(INPUT_COLUMNS), use_threads=False):
                batches.append(pa.Table.from_batches([batch]).select(INPUT_COLUMNS))
                size += batch.nbytes
                if size >= PROBE_BYTES or len(batches) * 64 >= ROWS_PER_BATCH:
                    return pa.concat_tables(batches).combine_chunks()
    return pa.concat_tables(batches).combine_chunks()
