"""Every document has an id of its own, or stage 02 stops before it has done any work: a receipt names one document.

How: 64-bit hashes of all ids, sorted outside of memory where they do not fit (dedup.external_sort); where hashes are
equal the ids themselves are compared.
Cost: reads the id column only, 5 million ids/s; 48 bytes of memory per document up to the room given, 16 on disk after.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dedup.external_sort import ExternalSorter, repeated
from pipeline_lib.compiled import kernel
from pipeline_lib.stage import UserError

from .arrow_text import text_buffers
from .words import hash_bytes

_ROWS_PER_READ = 65_536


@dataclass(frozen=True)
class Repeat:
    """An id that stands in two places, (file, row from 0) each."""

    identity: str
    first: tuple[Path, int]
    second: tuple[Path, int]


def check_ids(shards: Sequence[Path], folder: Path, room: int) -> None:
    """Raise UserError, with both places, when an id occurs twice. `folder` is for scratch, `room` is in bytes.

    Documents without an id are not looked at here: the stage names them when it reads them.
    """
    sorter = ExternalSorter(folder, "ids", room)
    starts = [0]
    for shard in shards:
        for first, ids in _ids(shard):
            known = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
            hashes = np.empty(len(known), np.uint64)
            _hash_each(*text_buffers(ids.drop_null()), hashes)
            sorter.add(hashes, starts[-1] + first + known)
        starts.append(starts[-1] + pq.read_metadata(shard).num_rows)
    found = list(repeated(sorter.blocks()))
    rows = np.concatenate([rows for rows, _ in found])
    groups = np.concatenate([groups for _, groups in found])
    if (repeat := _first_repeat(shards, np.array(starts), rows, groups)) is not None:
        (path, row), (other, other_row) = repeat.first, repeat.second
        raise UserError(
            f"the id {repeat.identity!r} stands in {path} row {row} and in {other} row {other_row} (rows count from 0);"
            f" up to {len(rows) - len(np.unique(groups))} documents repeat an id. Give each one its own: in"
            " download.sources name an `id_field` whose values are unique or leave it out, then run stage 01 again"
        )


def _ids(shard: Path) -> Iterator[tuple[int, pa.Array]]:
    """Yield (row of the first, ids) batch by batch."""
    first = 0
    try:
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(_ROWS_PER_READ, columns=["id"], use_threads=False):
                yield first, batch.column(0)
                first += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{shard}: ids from row {first} cannot be read ({error}); run stage 01 with --force") from None


def _first_repeat(shards: Sequence[Path], starts: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> Repeat | None:
    """Return the repeat whose second document comes first; None when equal hashes are of different ids."""
    order = np.lexsort((rows, groups))
    rows, groups = rows[order], groups[order]
    second = np.flatnonzero(groups[1:] == groups[:-1]) + 1
    for place in second[np.argsort(rows[second])].tolist():
        (shard, row), (other, other_row) = (_place(starts, int(rows[at])) for at in (place - 1, place))
        identity = _id_at(shards[shard], row)
        if identity == _id_at(shards[other], other_row):
            return Repeat(identity, (shards[shard], row), (shards[other], other_row))
    return None


def _place(starts: np.ndarray, row: int) -> tuple[int, int]:
    shard = int(np.searchsorted(starts, row, side="right")) - 1
    return shard, row - int(starts[shard])


def _id_at(shard: Path, row: int) -> str:
    for first, ids in _ids(shard):
        if row < first + len(ids):
            return ids[row - first].as_py()
    raise IndexError(f"{shard} has no row {row}")


@kernel
def _hash_each(data, offsets, out):
    for i in range(out.size):
        out[i] = hash_bytes(data, offsets[i], offsets[i + 1])
