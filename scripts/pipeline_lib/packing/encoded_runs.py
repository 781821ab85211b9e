"""Encoded documents on their way from shards, in shard order, to chunks, in shuffled order: an external merge sort.

What: encoding a run leaves a file of its documents sorted by their order key. A chunk covers a range of keys, so in
every run its documents lie side by side, and building a chunk reads a slice of each file.
How: an Arrow IPC file per run, memory-mapped, tokens as lists of the cache's integer type; when its digest lies beside
it, it is finished, whichever process wrote it.
Cost: one write and one read of 2 or 4 bytes per token; memory is one run's tokens while encoding, then one chunk, and
never grows with the corpus.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import UserError, atomic_path, file_digest, write_bytes_atomic

from .chunk_format import ChunkContent
from .chunk_ranges import ChunkRange
from .prefetch import prefetched
from .shards import ORDER, SPLIT, Run, hash_ids, read_batches
from .text_encoder import TextEncoder, text_buffers

_MAPPED_BYTES = 64 << 20
_DESCRIBING = ("order", "id", "source", "bytes", "shard", "row", "duplicates")
Selection = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(order keys, split keys) -> which documents are wanted, bool [documents]."""


def finished_run(folder: Path, run: Run) -> Path | None:
    """Return the file of an encoded run, or None while it is not finished."""
    path = folder / f"{run.key}.arrow"
    return path if _digest_path(path).is_file() and path.is_file() else None


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".xxh3")


def encode_run(run: Run, encoder: TextEncoder, seed: int, folder: Path, wanted: Selection | None = None) -> Path:
    """Encode a run's documents (the wanted ones) and write them below `folder`, sorted by order key.

    Raises UserError for a null in a column that must not have one.
    """
    batches, tokens = [], []
    for batch in prefetched(read_batches(run), 2):
        described, encoded = _encode_batch(batch, run, encoder, seed, wanted)
        batches.append(described)
        tokens.append((encoded, len(described)))
    table = pa.Table.from_batches(batches).combine_chunks()
    order = np.argsort(table.column("order").to_numpy(), kind="stable")
    values, ends = _in_order(tokens, table.column("tokens").to_numpy(), order, encoder)
    sorted_table = table.take(pa.array(order)).combine_chunks()
    lists = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values))
    sorted_table = sorted_table.set_column(table.schema.get_field_index("tokens"), "tokens", lists)
    final = folder / f"{run.key}.arrow"
    with (
        atomic_path(final) as path,
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, sorted_table.schema) as writer,
    ):
        writer.write_table(sorted_table, max_chunksize=max(1, len(sorted_table)))
    write_bytes_atomic(_digest_path(final), file_digest(final).encode())
    return final


def _encode_batch(
    batch: pa.RecordBatch, run: Run, encoder: TextEncoder, seed: int, wanted: Selection | None
) -> tuple[pa.RecordBatch, np.ndarray]:
    order, split = (hash_ids(batch.column("id"), seed, purpose) for purpose in (ORDER, SPLIT))
    if wanted is not None:
        chosen = np.flatnonzero(wanted(order, split))
        batch, order, split = batch.take(pa.array(chosen)), order[chosen], split[chosen]
    text = batch.column("text")
    tokens, offsets = encoder.encode(text)
    _, boundaries = text_buffers(text)
    described = pa.record_batch(
        {
            "order": order,
            "split": split,
            "id": batch.column("id").cast(pa.large_string()),
            "source": batch.column("source").cast(pa.string()),
            "bytes": np.diff(boundaries),
            "shard": np.full(len(text), run.shard_number, np.uint32),
            "row": batch.column("row"),
            "duplicates": batch.column("duplicates"),
            "tokens": np.diff(offsets) + 1,  # the separator
        }
    )
    return described, tokens


def _in_order(
    batches: list[tuple[np.ndarray, int]], lengths: np.ndarray, order: np.ndarray, encoder: TextEncoder
) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents' tokens in another order, each ended by the separator, and their boundaries.

    batches: tokens without separators, uint32, and how many documents they are; lengths: tokens of each document,
    int64, the separator included.
    """
    ends = np.concatenate([[0], np.cumsum(lengths[order])])
    target = np.empty(len(order), np.int64)
    target[order] = ends[:-1]
    out = np.empty(int(ends[-1]), encoder.dtype)
    first = 0
    for tokens, documents in batches:
        mine = slice(first, first + documents)
        _spread(tokens, lengths[mine], target[mine], encoder.special.separator, out)
        first += documents
    return out, ends


@dataclass
class RunStatistics:
    """Keys and sizes of one run's documents: order and split keys uint64, tokens int64, all [documents]."""

    order: np.ndarray
    split: np.ndarray
    tokens: np.ndarray


class EncodedRuns:
    """All encoded runs of a part, memory-mapped, as one shuffled sequence of documents."""

    def __init__(self, paths: list[Path | None]):
        """Check the files. Raises UserError when one is not what was written, FileNotFoundError when it is gone."""
        self._paths: list[Path] = []
        self._open: dict[int, pa.Table] = {}
        self._touched = 0
        for path in paths:
            if path is None:
                raise FileNotFoundError("an encoded run")
            if file_digest(path).encode() != _digest_path(path).read_bytes():
                raise UserError(f"{path} is damaged; delete it and start again: it is encoded anew")
            self._paths.append(path)

    def _table(self, number: int) -> pa.Table:
        """Return a run, mapped into memory; what was read through a map counts as memory until the map is dropped."""
        if number not in self._open:
            self._open[number] = pa.ipc.open_file(pa.memory_map(str(self._paths[number]))).read_all()
        return self._open[number]

    def _read(self, size: int) -> None:
        """Count bytes that were read through the maps, and drop all maps when they are many."""
        self._touched += size
        if self._touched > _MAPPED_BYTES:
            self._open.clear()
            self._touched = 0

    def statistics(self) -> Iterator[RunStatistics]:
        """Yield the keys and sizes of one run after the other."""
        for number in range(len(self._paths)):
            table = self._table(number)
            order, split = (table.column(name).to_numpy() for name in ("order", "split"))
            yield RunStatistics(order, split, _list_lengths(table.column("tokens")))
            self._read(24 * len(table))

    def gather(self, wanted: ChunkRange) -> tuple[ChunkContent, np.ndarray]:
        """Return the documents of a chunk as (content, bytes of text of each int64 [documents])."""
        described, runs = [], []
        for number in range(len(self._paths)):
            table = self._table(number)
            order = table.column("order").to_numpy()
            first = np.searchsorted(order, wanted.first_key, "left")
            stop = np.searchsorted(order, wanted.last_key, "right")
            rows = first + np.flatnonzero(wanted.in_split(table.column("split").to_numpy()[first:stop]))
            if len(rows):
                described.append(table.select(_DESCRIBING).take(pa.array(rows)))
                runs.append((table, rows))
        together = pa.concat_tables(described).combine_chunks()
        keys = [together.column(name).to_numpy() for name in ("row", "shard", "order")]
        place = np.lexsort(keys)  # the last key decides first: order, and shard and row where ids are equal
        together = together.take(pa.array(place)).combine_chunks()
        tokens, offsets = _tokens(runs, place)
        sources = sorted(set(together.column("source").unique().to_pylist()))
        codes = pc.index_in(together.column("source"), pa.array(sources)).to_numpy()
        content = ChunkContent(
            tokens,
            offsets,
            together.column("id").to_pylist(),
            codes.astype(np.uint16),
            sources,
            *(together.column(name).to_numpy() for name in ("shard", "row", "duplicates")),
        )
        self._read(tokens.nbytes + together.nbytes + (len(self._paths) << 16))
        return content, together.column("bytes").to_numpy()


def _tokens(runs: list[tuple[pa.Table, np.ndarray]], place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copy the documents of (run, rows) to where `place` sorts them; return (tokens, offsets)."""
    views = []
    for table, rows in runs:
        lists = table.column("tokens").chunk(0)
        ends = lists.offsets.to_numpy()
        views.append((lists.values.to_numpy(), ends[rows], ends[rows + 1] - ends[rows]))
    lengths = np.concatenate([length for _, _, length in views])
    offsets = np.concatenate([[0], np.cumsum(lengths[place])])
    target = np.empty(len(lengths), np.int64)
    target[place] = offsets[:-1]
    tokens = np.empty(int(offsets[-1]), views[0][0].dtype)
    done = 0
    for values, starts, length in views:
        _copy(values, starts, length, target[done : done + len(starts)], tokens)
        done += len(starts)
    return tokens, offsets


def amounts_by_source(content: ChunkContent, text_bytes: np.ndarray) -> dict[str, dict[str, int]]:
    """Return {source: documents, bytes of text and tokens} of a chunk."""
    lengths = np.diff(content.offsets)
    amounts: dict[str, Any] = {}
    for code, source in enumerate(content.sources):
        mine = content.source == code
        amounts[source] = {
            "documents": int(mine.sum()),
            "bytes": int(text_bytes[mine].sum()),
            "tokens": int(lengths[mine].sum()),
        }
    return amounts


@kernel
def _copy(values, starts, lengths, targets, out):
    """Copy pieces of `values` to their places in `out`."""
    for i in range(len(starts)):
        out[targets[i] : targets[i] + lengths[i]] = values[starts[i] : starts[i] + lengths[i]]


@kernel
def _spread(tokens, lengths, targets, separator, out):
    """Copy documents that lie side by side to their places, with the separator after each."""
    place = 0
    for document in range(len(lengths)):
        target, size = targets[document], lengths[document] - 1
        for i in range(size):
            out[target + i] = tokens[place + i]
        out[target + size] = separator
        place += size


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([np.diff(part.offsets.to_numpy()) for part in column.chunks] or [np.zeros(0, np.int64)])
