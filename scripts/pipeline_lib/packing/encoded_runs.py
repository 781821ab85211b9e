"""Encoded documents on their way from shards, in shard order, to chunks, in shuffled order: an external merge sort.

What: the documents of an encoded run are listed in the order of their keys. A chunk covers a range of keys, so in every
run its documents are neighbours, and building a chunk takes a slice of each run.
How: a run stays in memory as the encoder left it, and its tokens are copied once, straight to their place in a chunk. A
corpus of more text writes each run to a file (run_files.py), from which a chunk reads its slice.
Cost: 8 bytes of memory per token of the runs that are being encoded, then two chunks, never growing with the corpus;
with files also one write and one read of 2 or 4 bytes per token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.compiled import kernel

from .chunk_format import ChunkContent
from .chunk_ranges import ChunkRange
from .prefetch import prefetched
from .shards import ORDER, SPLIT, Run, hash_ids, read_batches
from .text_encoder import TextEncoder, text_buffers

if TYPE_CHECKING:
    from .run_files import RunFile

DOCUMENT = np.dtype(
    [
        ("order", "<u8"),
        ("split", "<u8"),
        ("start", "<i8"),
        ("stop", "<i8"),
        ("bytes", "<i8"),
        ("array", "<u4"),
        ("source", "<u4"),
        ("shard", "<u4"),
        ("row", "<u4"),
        ("duplicates", "<u4"),
    ]
)
"""One document of a run: its keys; where its tokens are (number of the array, first token, last token + 1 for the
separator, which need not be in the array); bytes of text; number of the source's name; shard, row and duplicates."""
Selection = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(order keys, split keys) -> which documents are wanted, bool [documents]."""


@dataclass
class RunStatistics:
    """Keys and sizes of one run's documents: order and split keys uint64, tokens int64, all [documents]."""

    order: np.ndarray
    split: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, documents: np.ndarray) -> "RunStatistics":
        """Take them from DOCUMENT [documents]."""
        order, split = (np.ascontiguousarray(documents[name]) for name in ("order", "split"))
        return cls(order, split, documents["stop"] - documents["start"])


@dataclass
class EncodedRun:
    """The documents of a run, or of a chunk in it, in memory.

    documents: DOCUMENT [documents], sorted by order key; ids: their ids, large strings; sources: names of the sources,
    strings; tokens: arrays of ids.
    """

    documents: np.ndarray
    ids: pa.Array
    sources: pa.Array
    tokens: list[np.ndarray]

    def lengths(self) -> np.ndarray:
        """Return the tokens of each document, the separator counted, int64 [documents]."""
        return self.documents["stop"] - self.documents["start"]

    def statistics(self) -> RunStatistics:
        """Return the keys and sizes of all documents."""
        return RunStatistics.of(self.documents)

    def part(self, wanted: ChunkRange) -> "EncodedRun":
        """Return the documents of a chunk, with the tokens of all."""
        order = np.ascontiguousarray(self.documents["order"])
        first = np.searchsorted(order, wanted.first_key, "left")
        stop = np.searchsorted(order, wanted.last_key, "right")
        rows = first + np.flatnonzero(wanted.in_split(self.documents["split"][first:stop]))
        return EncodedRun(self.documents[rows], self.ids.take(pa.array(rows)), self.sources, self.tokens)

    def copy(self, targets: np.ndarray, separator: int, out: np.ndarray) -> None:
        """Copy the tokens of each document to its place in `out`, the separator after it."""
        for number, tokens in enumerate(self.tokens):
            mine = np.flatnonzero(self.documents["array"] == number)
            start, stop = (self.documents[name][mine] for name in ("start", "stop"))
            _copy(tokens, start, stop, targets[mine], separator, out)


def encode_run(run: Run, encoder: TextEncoder, seed: int, wanted: Selection | None = None) -> EncodedRun:
    """Encode a run's documents, or the wanted ones.

    Raises UserError for a null in a column that must not have one.
    """
    described, ids, sources, tokens = [], [], [], []
    for texts, documents, own_ids, own_sources in prefetched(_described(run, seed, wanted), 2):
        encoded, boundaries = encoder.encode(texts)
        documents["start"], documents["stop"] = boundaries[:-1], boundaries[1:] + 1
        documents["array"] = len(tokens)
        described.append(documents)
        ids.append(own_ids)
        sources.append(own_sources)
        tokens.append(encoded)
    documents, named = np.concatenate(described), pa.concat_arrays(sources).dictionary_encode()
    documents["source"] = named.indices.to_numpy()
    order = np.argsort(documents["order"], kind="stable")
    return EncodedRun(documents[order], pa.concat_arrays(ids).take(pa.array(order)), named.dictionary, tokens)


def _described(
    run: Run, seed: int, wanted: Selection | None
) -> Iterator[tuple[pa.Array, np.ndarray, pa.Array, pa.Array]]:
    """Read a run; yield (texts, what else there is to know about each document, ids, sources)."""
    for batch in read_batches(run):
        order, split = (hash_ids(batch.column("id"), seed, purpose) for purpose in (ORDER, SPLIT))
        if wanted is not None:
            chosen = np.flatnonzero(wanted(order, split))
            batch, order, split = batch.take(pa.array(chosen)), order[chosen], split[chosen]
        texts = batch.column("text")
        _, boundaries = text_buffers(texts)
        documents = np.zeros(len(texts), DOCUMENT)
        documents["order"], documents["split"] = order, split
        documents["bytes"] = np.diff(boundaries)
        documents["shard"] = run.shard_number
        documents["row"], documents["duplicates"] = (batch.column(name).to_numpy() for name in ("row", "duplicates"))
        yield texts, documents, batch.column("id").cast(pa.large_string()), batch.column("source").cast(pa.string())


class EncodedRuns:
    """All encoded runs of a part, in memory or in files, as one shuffled sequence of documents.

    Threads may share it.
    """

    def __init__(self, runs: Sequence["EncodedRun | RunFile"], encoder: TextEncoder):
        """Take whole runs."""
        self._runs = runs
        self._separator, self._dtype = encoder.special.separator, encoder.dtype

    def statistics(self) -> Iterator[RunStatistics]:
        """Yield the keys and sizes of one run after the other."""
        for run in self._runs:
            yield run.statistics()

    def gather(self, wanted: ChunkRange) -> tuple[ChunkContent, np.ndarray]:
        """Return the documents of a chunk as (content, bytes of text of each int64 [documents])."""
        parts = [part for part in (run.part(wanted) for run in self._runs) if len(part.documents)]
        documents = np.concatenate([part.documents for part in parts])
        keys = [documents[name] for name in ("row", "shard", "order")]
        place = np.lexsort(keys)  # the last key decides first: order, and shard and row where ids are equal
        tokens, offsets = self._tokens(parts, documents["stop"] - documents["start"], place)
        documents = documents[place]
        named = pa.concat_arrays([part.sources.take(pa.array(part.documents["source"])) for part in parts])
        sources = sorted(named.unique().to_pylist())
        codes = pc.index_in(named, pa.array(sources)).to_numpy()
        content = ChunkContent(
            tokens,
            offsets,
            pa.concat_arrays([part.ids for part in parts]).take(pa.array(place)).to_pylist(),
            codes[place].astype(np.uint16),
            sources,
            *(documents[name] for name in ("shard", "row", "duplicates")),
        )
        return content, documents["bytes"]

    def _tokens(self, parts: list[EncodedRun], lengths: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copy the documents of all parts to where `place` sorts them; return (tokens, offsets)."""
        offsets = np.concatenate([[0], np.cumsum(lengths[place])])
        target = np.empty(len(lengths), np.int64)
        target[place] = offsets[:-1]
        tokens = np.empty(int(offsets[-1]), self._dtype)
        ends = np.cumsum([len(part.documents) for part in parts])
        for part, targets in zip(parts, np.split(target, ends[:-1]), strict=True):
            part.copy(targets, self._separator, tokens)
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
