"""The step `exact`: which rows have the same normalised text, and which of them is kept."""

from collections.abc import Iterator

import numpy as np

from .array_files import save_arrays
from .external_sort import Records, repeated
from .job import DedupJob
from .known import with_known

ROWS_PER_RANKING = 1 << 18


def find_equal_texts(job: DedupJob) -> None:
    """Find rows with an equal digest of the normalised text and the best of each group."""
    sorter = job.sorter("digest", 1)
    for row, (keys,) in job.sketches.batches(["digest_high"], job.first_new_file):
        sorter.add(keys.to_numpy().copy(), np.arange(row, row + len(keys)))
    blocks = with_known(sorter.blocks(), job.known.tables.get("digest_high", []), 1)
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for rows, groups in whole_groups(repeated(blocks), ROWS_PER_RANKING):
        found.append(_best_of_equal(job, rows, groups))
    row = np.concatenate([rows for rows, _ in found])
    keeper = np.concatenate([keepers for _, keepers in found])
    if job.among_themselves:
        chosen = np.ones(len(row), np.bool_)
    else:
        chosen = keeper < job.first_new
    order = np.argsort(row[chosen])
    save_arrays(job.copies_file, row=row[chosen][order], keeper=keeper[chosen][order])


def _best_of_equal(job: DedupJob, rows: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, keeper) for the new rows that are not the best of those with the same 128 bits."""
    ranking = job.rank_columns(rows)
    order = ranking.best_first((ranking.digest_low, groups))
    rows, groups, low = rows[order], groups[order], ranking.digest_low[order]
    begins = np.ones(len(rows), np.bool_)
    begins[1:] = (groups[1:] != groups[:-1]) | (low[1:] != low[:-1])
    keeper = rows[begins][np.cumsum(begins) - 1]
    gone = (keeper != rows) & (rows >= job.first_new)
    return rows[gone], keeper[gone]


def whole_groups(parts: Iterator[Records], least_rows: int) -> Iterator[Records]:
    """Yield (rows, groups) with about `least_rows`, never cutting a group."""
    rows, groups = np.empty(0, np.int64), np.empty(0, np.int64)
    for more_rows, more_groups in parts:
        rows, groups = np.concatenate([rows, more_rows]), np.concatenate([groups, more_groups])
        if len(rows) > least_rows:
            cut = int(np.searchsorted(groups, groups[-1]))
            if cut:
                yield rows[:cut], groups[:cut]
                rows, groups = rows[cut:], groups[cut:]
    if len(rows):
        yield rows, groups
