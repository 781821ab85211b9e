"""How many documents one document stands for: those removed in its favour, and those removed in favour of these.

A file that was deduplicated before says so of its documents in an integer column `duplicates` (stage 02 and
`index export` write it), which is added in.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError

from .corpus import Corpus
from .receipts import Removals

DUPLICATES = "duplicates"


def refuse_mixed_columns(corpus: Corpus) -> None:
    """Raise UserError when some files count in such a column and another has one that holds something else."""
    if _has_counts(corpus):
        refuse_other_columns(corpus)


def passed_on(corpus: Corpus, removals: Removals) -> dict[str, np.ndarray]:
    """Return the column `duplicates` as it is to be written where files count in it, nothing where none does.

    What a removed document stood for, and itself, its survivor stands for now; survivors that are not of the corpus are
    not written. The corpus must have passed `refuse_mixed_columns`.
    """
    if not _has_counts(corpus):
        return {}
    own = own_counts(corpus)
    counts = own.copy()
    ours = removals.survivor >= removals.first_new
    np.add.at(counts, removals.survivor[ours] - removals.first_new, 1 + own[removals.row[ours] - removals.first_new])
    return {DUPLICATES: counts}


def refuse_other_columns(corpus: Corpus) -> None:
    """Raise UserError for a file with a column `duplicates` of another kind, which would be replaced by numbers."""
    for file in corpus.files:
        kind = _kind_of_column(file)
        if kind is not None and not _is_number(kind):
            raise _refusal(file, str(kind))


def own_counts(corpus: Corpus) -> np.ndarray:
    """int64[documents]: what the files' own column says; 0 where there is none, or none of numbers, or a null.

    Raises UserError for fractions: pandas writes whole numbers as float64 beside a null, but nothing counts in halves.
    """
    counts = [np.empty(0, np.int64)]
    for piece in corpus.pieces:
        kind = _kind_of_column(piece.file)
        if not _is_number(kind):
            counts.append(np.zeros(piece.rows, np.int64))
            continue
        for table in corpus.read(piece, [DUPLICATES]):
            column = table.column(0)
            if pa.types.is_floating(kind):
                column = pc.if_else(pc.is_nan(column), None, column)
            try:
                counts.append(pc.fill_null(column.cast(pa.int64()), 0).to_numpy())
            except pa.ArrowInvalid:
                raise _refusal(piece.file, f"{kind} with fractions or beyond 63 bits") from None
    return np.concatenate(counts)


def _has_counts(corpus: Corpus) -> bool:
    return any(_is_number(_kind_of_column(file)) for file in corpus.files)


def _kind_of_column(file: Path) -> pa.DataType | None:
    schema = pq.read_schema(file)
    return schema.field(DUPLICATES).type if DUPLICATES in schema.names else None


def _is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _refusal(file: Path, kind: str) -> UserError:
    return UserError(
        f"dedup: column {DUPLICATES!r} of {file} is {kind}, not of whole numbers, and a column of that name is written"
        " with what each document stands for; rename it (of a source of an index: undo it, add it again)"
    )
