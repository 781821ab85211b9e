"""The plan of one context length: which pieces of which documents make up each packed sequence, as a Parquet table.

One row per piece, sorted by sequence: sequence int64 (train first, then val; every chunk's sequences side by side),
chunk int32, document int32 (within the chunk), start int32 and length int32 (tokens of the document), split.
The tokens are not touched: a new context length costs seconds, and reads the document offsets of the chunks only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.stage import StageFailure

from .best_fit import Packing, pack
from .chunk_format import ChunkFile

SCHEMA = pa.schema(
    {
        "sequence": pa.int64(),
        "chunk": pa.int32(),
        "document": pa.int32(),
        "start": pa.int32(),
        "length": pa.int32(),
        "split": pa.dictionary(pa.int8(), pa.string()),
    }
)


@dataclass
class SplitPlan:
    """What a plan does to one split; padding and cut documents are counts of tokens and of documents."""

    sequences: int = 0
    pieces: int = 0
    tokens: int = 0
    padding: int = 0
    documents: int = 0
    documents_cut: int = 0

    @property
    def padding_share(self) -> float:
        """Padding as a share of all positions."""
        return self.padding / max(1, self.padding + self.tokens)


def plan_file_name(context: int) -> str:
    """Return the name of a context length's plan."""
    return f"plan-{context}.parquet"


def write_plan(chunks: Sequence[ChunkFile], context: int, path: Path) -> dict[str, dict[str, int]]:
    """Pack every chunk and write the plan; return {split: counts}. Raises StageFailure if a token would be lost."""
    totals: dict[str, SplitPlan] = {}
    first_sequence = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for number, chunk in enumerate(chunks):
            lengths = np.diff(chunk.offsets)
            packing = pack(lengths, context)
            check_complete(packing, lengths, context)
            split = chunk.header["split"]
            writer.write_table(_as_table(packing, first_sequence, number, split))
            first_sequence += packing.sequences
            _add(totals.setdefault(split, SplitPlan()), packing, lengths, context)
    return {split: asdict(total) for split, total in sorted(totals.items())}


def check_complete(packing: Packing, lengths: np.ndarray, context: int) -> None:
    """Raise StageFailure unless every token is in one piece, no sequence overflows and no cut is needless."""
    pieces = np.bincount(packing.document, minlength=len(lengths))
    order = np.lexsort((packing.start, packing.document))
    document, start, stop = packing.document[order], packing.start[order], (packing.start + packing.length)[order]
    opens = np.concatenate([[True], document[1:] != document[:-1]])
    joined = np.where(opens, start == 0, start == np.concatenate([[0], stop[:-1]]))
    closes = np.concatenate([opens[1:], [True]])
    whole = joined.all() and np.array_equal(stop[closes], lengths[document[closes]]) and pieces.all()
    filled = np.bincount(packing.sequence, packing.length, packing.sequences)
    needed = (lengths + context - 1) // context
    if not (whole and filled.max() <= context and filled.min() > 0 and np.array_equal(pieces, needed)):
        raise StageFailure(f"the packing plan for context {context} does not hold every token exactly once")


def _as_table(packing: Packing, first_sequence: int, chunk: int, split: str) -> pa.Table:
    pieces = len(packing.sequence)
    return pa.table(
        [
            pa.array(packing.sequence + first_sequence),
            pa.array(np.full(pieces, chunk, np.int32)),
            pa.array(packing.document.astype(np.int32)),
            pa.array(packing.start.astype(np.int32)),
            pa.array(packing.length.astype(np.int32)),
            pa.DictionaryArray.from_arrays(np.zeros(pieces, np.int8), pa.array([split])),
        ],
        schema=SCHEMA,
    )


def _add(total: SplitPlan, packing: Packing, lengths: np.ndarray, context: int) -> None:
    total.sequences += packing.sequences
    total.pieces += len(packing.sequence)
    total.tokens += int(lengths.sum())
    total.padding += packing.sequences * context - int(lengths.sum())
    total.documents += len(lengths)
    total.documents_cut += int((lengths > context).sum())
