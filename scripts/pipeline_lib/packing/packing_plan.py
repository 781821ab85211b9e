"""The plan of one context length: which pieces of which documents make up each packed sequence, as a Parquet table.

One row per piece, sorted by split, then sequence; docs/packed_cache.md lists the columns. The tokens are not touched: a
new context length costs seconds, and reads the document lengths of the chunks only.

How often a document appears in an epoch is decided here as well. Its number of copies is the weight of its source times
the rehydration of its duplicates (FineWeb2, Penedo et al. 2025: text that many sites repeat is worth repeating some),
and a fraction is settled by a hash of its id: 2.3 is two copies, and a third for three documents in ten.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline_lib.stage import StageFailure

from .best_fit import Packing, pack
from .chunk_format import ChunkFile
from .chunk_ranges import SPLITS
from .shards import COPIES, hash_ids

SCHEMA = pa.schema(
    {
        "sequence": pa.int64(),
        "chunk": pa.int32(),
        "document": pa.int32(),
        "start": pa.int32(),
        "length": pa.int32(),
        "position": pa.int64(),
    }
)


@dataclass
class SplitPlan:
    """What a plan does to one split; tokens, padding: tokens in an epoch; the rest are counts of documents or pieces.

    documents_cut: longer than the context; filling_cuts: cuts made beyond those, to stay within the padding limit;
    documents_left_out: not in an epoch, by a weight below 1; documents_repeated: more than once, by one above 1.
    """

    sequences: int = 0
    pieces: int = 0
    tokens: int = 0
    padding: int = 0
    documents: int = 0
    documents_cut: int = 0
    filling_cuts: int = 0
    documents_left_out: int = 0
    documents_repeated: int = 0


@dataclass(frozen=True)
class Mixture:
    """weights: copies of a document per epoch, by source (1 if not named); rehydration: factor by least duplicates."""

    weights: dict[str, float] = field(default_factory=dict)
    rehydration: dict[int, float] = field(default_factory=dict)
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the settings for the index."""
        return {
            "weights": self.weights,
            "rehydration": {str(least): factor for least, factor in sorted(self.rehydration.items())},
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Mixture":
        """Read what `to_json` wrote."""
        rehydration = {int(least): factor for least, factor in value["rehydration"].items()}
        return cls(value["weights"], rehydration, value["seed"])

    def copies(self, chunk: ChunkFile) -> np.ndarray:
        """Return how often each document of a chunk appears in an epoch, int64 [documents]; val is never repeated."""
        count = chunk.header["documents"]
        if chunk.header["split"] == "val" or not (self.weights or self.rehydration):
            return np.ones(count, np.int64)
        factor = np.array([self.weights.get(source, 1.0) for source in chunk.header["sources"]])[chunk.source]
        rehydrated = np.ones(count)
        for least, value in sorted(self.rehydration.items()):
            rehydrated[chunk.duplicates >= least] = value
        wanted = factor * rehydrated
        whole = np.floor(wanted)
        chance = hash_ids(pa.array(chunk.ids), self.seed, COPIES).astype(np.float64) / float(1 << 64)
        return (whole + (chance < wanted - whole)).astype(np.int64)


def plan_file_name(context: int) -> str:
    """Return the name of a context length's plan."""
    return f"plan-{context}.parquet"


def write_plan(
    chunks: Iterable[ChunkFile], context: int, path: Path, mixture: Mixture, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Pack every chunk and write the plan; return {splits: {split: counts}, chunks: digest of each chunk's rows}.

    chunks: gone through once per split, so that ChunkFiles keeps one of them open at a time.
    before: what this returned for the chunks that come before these: numbers go on from there, and what is returned
    covers both. Raises StageFailure if a token would be lost.
    """
    earlier = before or {"splits": {}, "chunks": []}
    totals = {split: SplitPlan(**earlier["splits"].get(split, {})) for split in SPLITS}
    first = len(earlier["chunks"])
    digests: dict[int, str] = {}
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for split, total in totals.items():
            for number, chunk in enumerate(chunks, first):
                if chunk.header["split"] == split:
                    table = _pack_chunk(chunk, number, context, mixture, total)
                    writer.write_table(table)
                    digests[number] = rows_digest(table)
    splits = {split: asdict(total) for split, total in totals.items() if total.documents}
    return {"splits": splits, "chunks": [*earlier["chunks"], *(digests[number] for number in sorted(digests))]}


def join_plans(files: Sequence[Path], chunks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write as one plan what `write_plan` wrote part after part: the file it would write for all chunks at once.

    files: one per part; chunks: their entries in the index, whose part and split say where their rows stand.
    """
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for split in SPLITS:
            for part, file in enumerate(files):
                with pq.ParquetFile(file) as opened:
                    table = opened.read().combine_chunks()
                of_row = table.column("chunk").to_numpy()
                for number, chunk in enumerate(chunks):
                    if (chunk["part"], chunk["split"]) == (part, split):
                        first, stop = np.searchsorted(of_row, [number, number + 1])
                        writer.write_table(table.slice(first, stop - first))


def _pack_chunk(chunk: ChunkFile, number: int, context: int, mixture: Mixture, total: SplitPlan) -> pa.Table:
    lengths, copies = chunk.lengths.astype(np.int64), mixture.copies(chunk)
    document = np.repeat(np.arange(len(lengths)), copies)
    packing = pack(lengths[document], context)
    check_complete(packing, lengths[document], context)
    first_sequence = total.sequences
    tokens = int(lengths[document].sum())
    total.sequences += packing.sequences
    total.pieces += len(packing.sequence)
    total.tokens += tokens
    total.padding += packing.sequences * context - tokens
    total.documents += len(lengths)
    total.documents_cut += int((lengths > context).sum())
    total.filling_cuts += packing.cuts
    total.documents_left_out += int((copies == 0).sum())
    total.documents_repeated += int((copies > 1).sum())
    of_chunk = document[packing.document]
    return pa.table(
        [
            pa.array(packing.sequence + first_sequence),
            pa.array(np.full(len(of_chunk), number, np.int32)),
            pa.array(of_chunk.astype(np.int32)),
            pa.array(packing.start.astype(np.int32)),
            pa.array(packing.length.astype(np.int32)),
            pa.array(chunk.offsets[of_chunk] + packing.start),
        ],
        schema=SCHEMA,
    )


def rows_digest(table: pa.Table) -> str:
    """Return the xxh3-128 of a table's numbers, column after column, little-endian."""
    state = xxhash.xxh3_128()
    for column in table.columns:
        for part in column.chunks:
            state.update(np.ascontiguousarray(part.to_numpy()))
    return state.hexdigest()


def check_complete(packing: Packing, lengths: np.ndarray, context: int) -> None:
    """Raise StageFailure unless every token is in one piece, no sequence overflows and every cut is accounted for."""
    if not len(lengths):
        return
    pieces = np.bincount(packing.document, minlength=len(lengths))
    order = np.lexsort((packing.start, packing.document))
    document, start, stop = packing.document[order], packing.start[order], (packing.start + packing.length)[order]
    opens = np.concatenate([[True], document[1:] != document[:-1]])
    joined = np.where(opens, start == 0, start == np.concatenate([[0], stop[:-1]]))
    closes = np.concatenate([opens[1:], [True]])
    whole = joined.all() and np.array_equal(stop[closes], lengths[document[closes]]) and pieces.all()
    filled = np.bincount(packing.sequence, packing.length, packing.sequences)
    needed = (lengths + context - 1) // context
    counted = (pieces >= needed).all() and (pieces - needed).sum() == packing.cuts
    if not (whole and filled.max() <= context and filled.min() > 0 and counted):
        raise StageFailure(f"the packing plan for context {context} does not hold every token exactly once")
