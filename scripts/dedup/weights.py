"""How many documents one document stands for: those removed in its favour, and those removed in favour of these.

A file that was deduplicated before says so of its documents in an integer column `duplicates` (stage 02 and
`index export` write it), which is added in.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError

from .corpus import Corpus

DUPLICATES = "duplicates"


def refuse_other_columns(corpus: Corpus) -> None:
    """Raise UserError for a file with a column `duplicates` of another kind, which would be replaced by numbers."""
    for file in corpus.files:
        schema = pq.read_schema(file)
        if DUPLICATES in schema.names and not pa.types.is_integer(schema.field(DUPLICATES).type):
            raise UserError(
                f"dedup: column {DUPLICATES!r} of {file} is {schema.field(DUPLICATES).type}, not of whole numbers, and"
                " the export writes a column of that name; rename it, undo that source and add it again"
            )


def own_counts(corpus: Corpus) -> np.ndarray:
    """int64[documents]: what the files' own column says; 0 where there is none, or none of whole numbers, or a null."""
    counts = [np.empty(0, np.int64)]
    for piece in corpus.pieces:
        schema = pq.read_schema(piece.file)
        if DUPLICATES not in schema.names or not pa.types.is_integer(schema.field(DUPLICATES).type):
            counts.append(np.zeros(piece.rows, np.int64))
            continue
        for table in corpus.read(piece, [DUPLICATES]):
            counts.append(pc.fill_null(table.column(0).cast(pa.int64(), safe=False), 0).to_numpy())
    return np.concatenate(counts)
