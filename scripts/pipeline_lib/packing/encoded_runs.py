"""Encoded documents on their way from shards, in shard order, to chunks, in shuffled order: an external merge sort.

What: encoding a run leaves a file of its documents sorted by their order key. A chunk covers a range of keys, so in
every run its documents lie side by side, and building a chunk reads a slice of each file.
How: an Arrow IPC file per run, memory-mapped, tokens as lists of the cache's integer type: slices cost no copy.
Cost: one write and one read of 2 or 4 bytes per token; memory is one run's tokens while encoding, then one chunk plus
25 bytes per document of the whole corpus.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .chunk_format import ChunkContent
from .shards import ORDER, SPLIT, Run, below, hash_ids, read_batches
from .text_encoder import TextEncoder, text_buffers

SPLITS = ("train", "val")


def encode_run(run: Run, encoder: TextEncoder, seed: int, path: Path) -> None:
    """Encode a run's documents and write them to `path`, sorted by order key. Raises UserError for a null."""
    batches = [_encode_batch(batch, encoder, seed) for batch in read_batches(run)]
    table = pa.Table.from_batches(batches)
    order = np.argsort(table.column("order").to_numpy(), kind="stable")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for start in range(0, len(order), 1 << 14):
            writer.write_table(table.take(pa.array(order[start : start + (1 << 14)])).combine_chunks())


def _encode_batch(batch: pa.RecordBatch, encoder: TextEncoder, seed: int) -> pa.RecordBatch:
    text, ids = batch.column("text"), batch.column("id")
    tokens, offsets = encoder.encode_documents(text)
    _, boundaries = text_buffers(text)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens))
    return pa.record_batch(
        {
            "order": hash_ids(ids, seed, ORDER),
            "split": hash_ids(ids, seed, SPLIT),
            "id": ids.cast(pa.large_string()),
            "source": batch.column("source").cast(pa.string()),
            "bytes": np.diff(boundaries),
            "tokens": lists,
        }
    )


@dataclass
class DocumentTable:
    """One row per document of the whole corpus, in the order of the cache: first train, then val, each shuffled.

    run: int32, which file; row: int32, where in it; val: bool; tokens: int64, its length.
    """

    run: np.ndarray
    row: np.ndarray
    val: np.ndarray
    tokens: np.ndarray


class EncodedRuns:
    """All encoded runs, memory-mapped, as one shuffled sequence of documents."""

    def __init__(self, paths: list[Path], val_fraction: float):
        self.tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        orders, splits, lengths, runs, rows = [], [], [], [], []
        for number, table in enumerate(self.tables):
            orders.append(table.column("order").to_numpy())
            splits.append(table.column("split").to_numpy())
            lengths.append(_list_lengths(table.column("tokens")))
            runs.append(np.full(len(table), number, np.int32))
            rows.append(np.arange(len(table), dtype=np.int32))
        order, split = np.concatenate(orders), np.concatenate(splits)
        val = below(split, val_fraction)
        self.val_is_one_document = bool(val_fraction > 0 and len(split) > 1 and not val.any())
        if self.val_is_one_document:
            val[np.argmin(split)] = True
        place = np.lexsort((order, val))
        self.documents = DocumentTable(
            np.concatenate(runs)[place], np.concatenate(rows)[place], val[place], np.concatenate(lengths)[place]
        )

    def cut(self, chunk_tokens: int) -> list[tuple[int, int]]:
        """Return the chunks as ranges of documents: per split, equal shares of about `chunk_tokens` tokens."""
        chunks = []
        for val in (False, True):
            first, stop = np.searchsorted(self.documents.val, [val, True + val])
            if first == stop:
                continue
            ends = np.cumsum(self.documents.tokens[first:stop])
            count = max(1, round(int(ends[-1]) / chunk_tokens))
            targets = ends[-1] * np.arange(1, count) // count
            cuts = [first, *(first + 1 + np.searchsorted(ends, targets)), stop]
            chunks += [(int(a), int(b)) for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
        return chunks

    def gather(self, first: int, stop: int) -> tuple[ChunkContent, np.ndarray, str]:
        """Return documents first..stop-1 as (content of a chunk, bytes of text of each int64 [documents], split)."""
        run, row = self.documents.run[first:stop], self.documents.row[first:stop]
        by_run = np.lexsort((row, run))
        slices = []
        for number in np.unique(run):
            mine = row[run == number]
            slices.append(
                self.tables[number]
                .slice(int(mine.min()), int(mine.max() - mine.min() + 1))
                .take(pa.array(np.sort(mine) - mine.min()))
            )
        table = pa.concat_tables(slices).take(pa.array(np.argsort(by_run, kind="stable"))).combine_chunks()
        tokens = table.column("tokens").chunk(0)
        offsets = tokens.offsets.to_numpy()
        sources = sorted(set(table.column("source").unique().to_pylist()))
        codes = pc.index_in(table.column("source"), pa.array(sources)).to_numpy()
        content = ChunkContent(
            tokens.values.to_numpy()[offsets[0] : offsets[-1]],
            offsets - offsets[0],
            table.column("id").to_pylist(),
            codes.astype(np.uint16),
            sources,
        )
        return content, table.column("bytes").to_numpy(), SPLITS[int(self.documents.val[first])]


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([np.diff(part.offsets.to_numpy()) for part in column.chunks] or [np.zeros(0, np.int64)])
