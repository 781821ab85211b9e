"""Read cleaned text shards in batches: the documents, a seeded sample of them, and bounded pieces of work.

A document's place in the cache, its part in the sample and its split are hashes of its id under different keys. They
depend on the document and the seed only: never on its shard, on the number of workers or on other documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline_lib.stage import UserError

from .pretoken_counts import DocumentBatch
from .text_encoder import text_buffers

COLUMNS = ("id", "source", "text")
BATCH_DOCUMENTS = 1024
RUN_BYTES = 64 << 20
ORDER, SPLIT, SAMPLE = 0, 1, 2
_TOP = float(1 << 64)


@dataclass(frozen=True)
class Run:
    """Some consecutive row groups of one shard: the unit of encoding. bytes: size of its text, about."""

    shard: Path
    row_groups: tuple[int, ...]
    bytes: int
    key: str


def plan_runs(shards: list[Path]) -> list[Run]:
    """Cut shards into runs of about RUN_BYTES of text. Raises UserError for a file that is no shard, or no text."""
    runs = []
    for shard in shards:
        try:
            metadata = pq.read_metadata(shard)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{shard} cannot be read as Parquet ({error}); make it again with stage 02") from None
        names = metadata.schema.to_arrow_schema().names
        if missing := [name for name in COLUMNS if name not in names]:
            raise UserError(f"{shard} has no column {missing[0]!r}; a text shard has id, source and text")
        text = metadata.schema.names.index("text")
        groups, size = [], 0
        for group in range(metadata.num_row_groups if metadata.num_rows else 0):
            groups.append(group)
            size += metadata.row_group(group).column(text).total_uncompressed_size
            if size >= RUN_BYTES or group == metadata.num_row_groups - 1:
                runs.append(Run(shard, tuple(groups), size, f"{shard.stem}.{groups[0]:04d}"))
                groups, size = [], 0
    if not runs:
        raise UserError("there is no text to pack: stage 02 kept no document; loosen its rules or add a source")
    return runs


def read_batches(run: Run, columns: tuple[str, ...] = COLUMNS) -> Iterator[pa.RecordBatch]:
    """Yield a run's documents in batches; memory is that of a few batches, not of the shard.

    Raises UserError, naming the shard, for a column that is not text or has a null.
    """
    with pq.ParquetFile(run.shard) as file:
        for batch in file.iter_batches(BATCH_DOCUMENTS, row_groups=list(run.row_groups), columns=list(columns)):
            for name in columns:
                column = batch.column(name)
                if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                    raise UserError(f"{run.shard}: column {name!r} is {column.type}, not string; run stage 02 again")
                if column.null_count:
                    raise UserError(f"{run.shard}: a document has no {name} (null); run stage 02 again")
            yield batch


def hash_ids(ids: pa.Array, seed: int, purpose: int) -> np.ndarray:
    """Return one uniform 64-bit hash per id, uint64 [documents], independent between purposes and seeds."""
    key = xxhash.xxh3_64_intdigest(f"{purpose}:{seed}".encode())
    hashes = [xxhash.xxh3_64_intdigest(identity.encode(), key) for identity in ids.to_pylist()]
    return np.array(hashes, np.uint64)


def below(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Return which hashes fall into the lowest `fraction` of their range, bool [documents]."""
    if fraction >= 1:
        return np.ones(len(hashes), bool)
    return hashes < np.uint64(int(fraction * _TOP))


def training_batches(runs: list[Run], seed: int, training_bytes: int) -> Iterator[DocumentBatch]:
    """Yield the text a tokenizer is trained on: everything, or a seeded sample of about `training_bytes`."""
    fraction = training_bytes / max(1, sum(run.bytes for run in runs))
    for run in runs:
        for batch in read_batches(run, ("id", "text")):
            text = batch.column("text")
            if fraction < 1:
                text = text.filter(pa.array(below(hash_ids(batch.column("id"), seed, SAMPLE), fraction)))
            yield text_buffers(text)


def sample_texts(runs: list[Run], limit_bytes: int) -> list[str]:
    """Return the first texts of each run, `limit_bytes` together at most but at least one each, for checks."""
    texts = []
    for run in runs[:64]:
        room = limit_bytes // min(len(runs), 64)
        for text in next(iter(read_batches(run, ("text",)))).column("text").to_pylist():
            texts.append(text[:room])
            room -= len(text)
            if room <= 0:
                break
    return texts
