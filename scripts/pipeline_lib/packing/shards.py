"""Read cleaned text shards in batches: the documents, a seeded sample of them, and bounded pieces of work.

A document's place in the cache, its part in the sample and its split are hashes of its id under different keys. They
depend on the document and the seed only: never on its shard, on the number of workers or on other documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline_lib.stage import UserError

from .pretoken_counts import DocumentBatch
from .text_encoder import text_buffers

COLUMNS = ("id", "source", "text")
DUPLICATES = "duplicates"
"""Optional column: how many documents were removed in favour of this one."""
BATCH_BYTES = 8 << 20
RUN_BYTES = 32 << 20
ORDER, SPLIT, SAMPLE, COPIES = 0, 1, 2, 3
_TOP = 1 << 64


@dataclass(frozen=True)
class Run:
    """Some consecutive row groups of one shard: the unit of encoding.

    shard_number: place of the shard in its part of the cache; first_row: of the shard; rows; bytes: of text, about.
    """

    shard: Path
    shard_number: int
    row_groups: tuple[int, ...]
    first_row: int
    rows: int
    bytes: int
    key: str


def plan_runs(shards: list[Path]) -> list[Run]:
    """Cut shards into runs of about RUN_BYTES of text; row groups without rows are in none.

    Raises UserError for a file that is no shard.
    """
    runs = []
    for number, shard in enumerate(shards):
        try:
            metadata = pq.read_metadata(shard)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{shard} cannot be read as Parquet ({error}); make it again with stage 02") from None
        names = metadata.schema.to_arrow_schema().names
        if missing := [name for name in COLUMNS if name not in names]:
            raise UserError(f"{shard} has no column {missing[0]!r}; a text shard has id, source and text")
        text = metadata.schema.names.index("text")
        groups, size, first, rows = [], 0, 0, 0
        filled = [group for group in range(metadata.num_row_groups) if metadata.row_group(group).num_rows]
        for group in filled:
            groups.append(group)
            size += metadata.row_group(group).column(text).total_uncompressed_size
            rows += metadata.row_group(group).num_rows
            if size >= RUN_BYTES or group == filled[-1]:
                key = f"{shard.stem}.{groups[0]:04d}"
                runs.append(Run(shard, number, tuple(groups), first, rows, size, key))
                groups, size, first, rows = [], 0, first + rows, 0
    return runs


def require_text(runs: list[Run]) -> None:
    """Raise UserError when there is no document at all."""
    if not runs:
        raise UserError("there is no text to pack: stage 02 kept no document; loosen its rules or add a source")


def read_batches(run: Run, columns: tuple[str, ...] = COLUMNS) -> Iterator[pa.RecordBatch]:
    """Yield a run's documents in batches of about BATCH_BYTES of text, with their `row` in the shard (uint32).

    `duplicates` (uint32, 0 where the shard has no such column) comes with all of COLUMNS. Memory is that of a few
    batches, not of the shard. Raises UserError, naming the shard, for a column that is not text or has a null.
    """
    row = run.first_row
    documents = max(16, min(1 << 16, run.rows * BATCH_BYTES // max(1, run.bytes)))
    with pq.ParquetFile(run.shard) as file:
        read = [*columns, DUPLICATES] if columns == COLUMNS and DUPLICATES in file.schema_arrow.names else [*columns]
        for batch in file.iter_batches(documents, row_groups=list(run.row_groups), columns=read):
            for name in columns:
                column = batch.column(name)
                if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                    raise UserError(f"{run.shard}: column {name!r} is {column.type}, not string; run stage 02 again")
                if column.null_count:
                    raise UserError(f"{run.shard}: a document has no {name} (null); run stage 02 again")
            rows = pa.array(np.arange(row, row + len(batch), dtype=np.uint32))
            counts = batch.column(DUPLICATES).cast(pa.uint32()) if DUPLICATES in read else _zeros(len(batch))
            row += len(batch)
            yield pa.record_batch(
                [*(batch.column(name) for name in columns), rows, counts], names=[*columns, "row", DUPLICATES]
            )


def _zeros(count: int) -> pa.Array:
    return pa.array(np.zeros(count, np.uint32))


def hash_ids(ids: pa.Array, seed: int, purpose: int) -> np.ndarray:
    """Return one uniform 64-bit hash per id, uint64 [documents], independent between purposes and seeds."""
    key = xxhash.xxh3_64_intdigest(f"{purpose}:{seed}".encode())
    hashes = [xxhash.xxh3_64_intdigest(identity.encode(), key) for identity in ids.to_pylist()]
    return np.array(hashes, np.uint64)


@dataclass
class TrainingSample:
    """Which documents a tokenizer is trained on, and what was taken.

    fractions: share of each source's documents; a document is taken when its hash under purpose SAMPLE lies below it.
    """

    seed: int
    fractions: dict[str, float]
    documents: int = 0
    bytes: int = 0

    def batches(self, runs: list[Run]) -> "SampledText":
        """Return the text of the sample, which may be read more than once; reading it counts it."""
        return SampledText(self, runs)

    def read(self, runs: list[Run]) -> Iterator[DocumentBatch]:
        """Yield the text of the sample, counting it."""
        self.documents = self.bytes = 0
        thresholds = {source: int(min(1.0, fraction) * _TOP) for source, fraction in self.fractions.items()}
        for run in runs:
            for batch in read_batches(run):
                text = batch.column("text")
                if min(thresholds.values(), default=_TOP) < _TOP:
                    text = text.filter(pa.array(self._chosen(batch, thresholds)))
                data, offsets = text_buffers(text)
                self.documents += len(text)
                self.bytes += int(offsets[-1] - offsets[0])
                yield data, offsets

    def _chosen(self, batch: pa.RecordBatch, thresholds: dict[str, int]) -> np.ndarray:
        hashes = hash_ids(batch.column("id"), self.seed, SAMPLE).tolist()
        sources = batch.column("source").to_pylist()
        return np.array([key < thresholds[source] for key, source in zip(hashes, sources, strict=True)], bool)

    def to_json(self) -> dict[str, Any]:
        """Return the rule with its numbers: enough to draw the same sample again."""
        return {
            "rule": "hash of the id (docs/packed_cache.md) below the fraction of its source",
            "seed": self.seed,
            "fractions": self.fractions,
            "documents": self.documents,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class SampledText:
    """The batches of a sample, read from the shards each time that they are iterated."""

    sample: TrainingSample
    runs: list[Run]

    def __iter__(self) -> Iterator[DocumentBatch]:
        """Yield the batches from the first one on."""
        return self.sample.read(self.runs)


def weighted_sample(
    bytes_by_source: dict[str, int], weights: dict[str, float], training_bytes: int, seed: int
) -> TrainingSample:
    """Return the sample of about `training_bytes`: each source's share of it follows its size and its weight.

    Sources that have less text than their share give all they have, and the others take the rest of the room.
    """
    waiting = {source: size for source, size in bytes_by_source.items() if size and weights.get(source, 1.0) > 0}
    fractions = dict.fromkeys(sorted(bytes_by_source), 0.0)
    room = float(training_bytes)
    while waiting:
        scale = room / sum(size * weights.get(source, 1.0) for source, size in waiting.items())
        whole = [source for source in sorted(waiting) if scale * weights.get(source, 1.0) >= 1]
        if not whole:
            fractions.update({source: scale * weights.get(source, 1.0) for source in waiting})
            break
        for source in whole:
            fractions[source] = 1.0
            room -= waiting.pop(source)
    return TrainingSample(seed, fractions)


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
