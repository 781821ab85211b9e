"""Encoded documents on their way from shards, in shard order, to chunks, in shuffled order: an external merge sort.

What: the documents of an encoded run are listed in the order of their keys. A chunk covers a range of keys, so in every
run its documents are neighbours, and building a chunk takes a slice of each run.
How: a run stays in memory as the encoder left it, and its tokens are copied once, straight to their place in a chunk. A
corpus of more text writes each run as an Arrow IPC file, mapped into memory, tokens as lists of the cache's integer
type; when its digest lies beside it, it is finished, whichever process wrote it.
Cost: 8 bytes of memory per token of the runs that are being encoded, then a chunk, never growing with the corpus; with
files also one write and one read of 2 or 4 bytes per token.
Trap: the files are not forced to disk, which would cost more than encoding again. After a power cut one may hold
anything; its digest tells.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import atomic_path, file_digest

from .chunk_format import ChunkContent
from .chunk_ranges import ChunkRange
from .prefetch import prefetched
from .shards import ORDER, SPLIT, Run, hash_ids, read_batches
from .text_encoder import TextEncoder, text_buffers

_MAPPED_BYTES = 64 << 20
_DESCRIBING = ("order", "id", "source", "bytes", "shard", "row", "duplicates")
Selection = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(order keys, split keys) -> which documents are wanted, bool [documents]."""


@dataclass
class EncodedRun:
    """The documents of a run, sorted by order key, and where their tokens are.

    documents: one row per document, its keys and all of _DESCRIBING; tokens: arrays of ids; array, start: number of the
    array and place in it where each document's ids begin, int64 [documents]; stop: start + ids + 1 for the separator,
    which need not be in the array.
    """

    documents: pa.Table
    tokens: list[np.ndarray]
    array: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "EncodedRun":
        """Map a file that `save` wrote into memory. Raises OSError when it is gone."""
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        lists = table.column("tokens").chunk(0) if len(table) else pa.array([], pa.large_list(pa.uint16()))
        ends = lists.offsets.to_numpy()
        array = np.broadcast_to(np.int64(0), len(table))
        return cls(table.drop_columns("tokens"), [lists.values.to_numpy()], array, ends[:-1], ends[1:])

    def save(self, folder: Path, run: Run, encoder: TextEncoder) -> None:
        """Write the run's file and, once it is whole, its digest. Raises OSError."""
        lengths = self.stop - self.start
        ends = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.empty(int(ends[-1]), encoder.dtype)
        self.copy(np.arange(len(lengths)), ends[:-1], encoder.special.separator, tokens)
        lists = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(tokens))
        table = self.documents.append_column("tokens", lists)
        final = folder / f"{run.key}.arrow"
        with (
            atomic_path(final, durable=False) as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=max(1, len(table)))
        with atomic_path(_digest_path(final), durable=False) as path:
            path.write_text(file_digest(final))

    def copy(self, rows: np.ndarray, targets: np.ndarray, separator: int, out: np.ndarray) -> None:
        """Copy the tokens of some documents to their places in `out`, the separator after each."""
        for number, tokens in enumerate(self.tokens):
            mine = np.flatnonzero(self.array[rows] == number)
            own = rows[mine]
            _copy(tokens, self.start[own], self.stop[own], targets[mine], separator, out)


def finished_run(folder: Path, run: Run) -> Path | None:
    """Return the file of an encoded run, or None while it is not finished."""
    path = folder / f"{run.key}.arrow"
    return path if _digest_path(path).is_file() and path.is_file() else None


def drop_if_damaged(path: Path) -> bool:
    """Say whether a run's file is not what was written; if so it is unfinished from now on."""
    try:
        if file_digest(path) == _digest_path(path).read_text():
            return False
    except FileNotFoundError:  # another process, which shares the work, found the same
        return True
    _digest_path(path).unlink(missing_ok=True)
    return True


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".xxh3")


def encode_run(run: Run, encoder: TextEncoder, seed: int, wanted: Selection | None = None) -> EncodedRun:
    """Encode a run's documents, or the wanted ones.

    Raises UserError for a null in a column that must not have one.
    """
    described, tokens, starts, stops = [], [], [], []
    for texts, documents in prefetched(_described(run, seed, wanted), 2):
        ids, boundaries = encoder.encode(texts)
        described.append(documents)
        tokens.append(ids)
        starts.append(boundaries[:-1])
        stops.append(boundaries[1:] + 1)
    table = pa.Table.from_batches(described).combine_chunks()
    order = np.argsort(table.column("order").to_numpy(), kind="stable")
    array = np.repeat(np.arange(len(tokens)), [len(documents) for documents in described])
    starts, stops = np.concatenate(starts), np.concatenate(stops)
    return EncodedRun(table.take(pa.array(order)).combine_chunks(), tokens, array[order], starts[order], stops[order])


def _described(run: Run, seed: int, wanted: Selection | None) -> Iterator[tuple[pa.Array, pa.RecordBatch]]:
    """Read a run; yield (texts, what else there is to know about each document)."""
    for batch in read_batches(run):
        order, split = (hash_ids(batch.column("id"), seed, purpose) for purpose in (ORDER, SPLIT))
        if wanted is not None:
            chosen = np.flatnonzero(wanted(order, split))
            batch, order, split = batch.take(pa.array(chosen)), order[chosen], split[chosen]
        texts = batch.column("text")
        _, boundaries = text_buffers(texts)
        columns = {
            "order": order,
            "split": split,
            "id": batch.column("id").cast(pa.large_string()),
            "source": batch.column("source").cast(pa.string()),
            "bytes": np.diff(boundaries),
            "shard": np.full(len(texts), run.shard_number, np.uint32),
            "row": batch.column("row"),
            "duplicates": batch.column("duplicates"),
        }
        yield texts, pa.record_batch(columns)


@dataclass
class RunStatistics:
    """Keys and sizes of one run's documents: order and split keys uint64, tokens int64, all [documents]."""

    order: np.ndarray
    split: np.ndarray
    tokens: np.ndarray


class EncodedRuns:
    """All encoded runs of a part, in memory or mapped, as one shuffled sequence of documents. Threads may share it."""

    def __init__(self, runs: Sequence[EncodedRun | Path], encoder: TextEncoder):
        """Take runs as they are, or the whole files of runs."""
        self._runs = runs
        self._separator, self._dtype = encoder.special.separator, encoder.dtype
        self._open: dict[int, EncodedRun] = {}
        self._touched = 0

    def _run(self, number: int) -> EncodedRun:
        """Return a run; what was read through the map of a file counts as memory until the map is dropped."""
        run = self._runs[number]
        if isinstance(run, EncodedRun):
            return run
        opened = self._open.get(number) or EncodedRun.open(run)
        self._open[number] = opened
        return opened

    def _read(self, size: int) -> None:
        """Count bytes that were read through the maps, and drop all maps when they are many."""
        self._touched += size
        if self._touched > _MAPPED_BYTES:
            self._open.clear()
            self._touched = 0

    def statistics(self) -> Iterator[RunStatistics]:
        """Yield the keys and sizes of one run after the other."""
        for number in range(len(self._runs)):
            run = self._run(number)
            order, split = (run.documents.column(name).to_numpy() for name in ("order", "split"))
            yield RunStatistics(order, split, run.stop - run.start)
            self._read(32 * len(order))

    def gather(self, wanted: ChunkRange) -> tuple[ChunkContent, np.ndarray]:
        """Return the documents of a chunk as (content, bytes of text of each int64 [documents])."""
        described, pieces = [], []
        for number in range(len(self._runs)):
            run = self._run(number)
            order = run.documents.column("order").to_numpy()
            first = np.searchsorted(order, wanted.first_key, "left")
            stop = np.searchsorted(order, wanted.last_key, "right")
            rows = first + np.flatnonzero(wanted.in_split(run.documents.column("split").to_numpy()[first:stop]))
            if len(rows):
                described.append(run.documents.select(_DESCRIBING).take(pa.array(rows)))
                pieces.append((run, rows))
        together = pa.concat_tables(described).combine_chunks()
        keys = [together.column(name).to_numpy() for name in ("row", "shard", "order")]
        place = np.lexsort(keys)  # the last key decides first: order, and shard and row where ids are equal
        together = together.take(pa.array(place)).combine_chunks()
        tokens, offsets = self._tokens(pieces, place)
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
        self._read(tokens.nbytes + together.nbytes + (len(self._runs) << 16))
        return content, together.column("bytes").to_numpy()

    def _tokens(self, pieces: list[tuple[EncodedRun, np.ndarray]], place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copy the documents of (run, rows) to where `place` sorts them; return (tokens, offsets)."""
        lengths = np.concatenate([run.stop[rows] - run.start[rows] for run, rows in pieces])
        offsets = np.concatenate([[0], np.cumsum(lengths[place])])
        target = np.empty(len(lengths), np.int64)
        target[place] = offsets[:-1]
        tokens = np.empty(int(offsets[-1]), self._dtype)
        done = 0
        for run, rows in pieces:
            run.copy(rows, target[done : done + len(rows)], self._separator, tokens)
            done += len(rows)
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
def _copy(tokens, starts, stops, targets, separator, out):
    """Copy documents to their places in `out`, each without its last token, which is the separator.

    Trap: numba checks signed indices for being negative; through views of one document the loop is four times as fast.
    """
    for document in range(len(starts)):
        source = tokens[starts[document] : stops[document] - 1]
        target = out[targets[document] : targets[document] + len(source)]
        for i in range(len(target)):
            target[i] = source[i]
        out[targets[document] + len(source)] = separator
