"""What an index writes of a source so that later ones are compared with it: its keys, sorted, beside its rows.

One table for the digests of the normalised texts and one for every band, of the documents that stay; among equal keys
the better document comes first (a later source looks at so many and no more). Two .npy files each, which the next run
maps. Sorted on disk where there are many, and ranked key by key, so that memory does not grow with the source, only
with the number of documents that share one key.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .external_sort import Records
from .job import DedupJob
from .sketch import band_name


def write_tables(job: DedupJob, stays: np.ndarray, folder: Path) -> list[Path]:
    """Write the tables of the documents of a job that stay, and return the files. Raises OSError when the disk is full.

    stays: bool[new rows].
    """
    folder.mkdir(parents=True, exist_ok=True)
    can_be_near = stays & (job.sketches.numbers("shingles", job.first_new_file) > 0)
    written = []
    for name in ["digest_high", *(band_name(band) for band in range(job.parameters.bands))]:
        written += _write_table(job, name, stays if name == "digest_high" else can_be_near, folder)
    return written


def _write_table(job: DedupJob, name: str, chosen: np.ndarray, folder: Path) -> tuple[Path, Path]:
    sorter = job.sorter(f"table-{name}", 1)
    for row, (keys,) in job.sketches.batches([name], job.first_new_file):
        mine = np.flatnonzero(chosen[row - job.first_new : row - job.first_new + len(keys)])
        sorter.add(keys.to_numpy()[mine], mine + row)
    count = int(np.count_nonzero(chosen))
    keys_file, rows_file = folder / f"{name}.keys.npy", folder / f"{name}.rows.npy"
    with open(keys_file, "wb") as keys_stream, open(rows_file, "wb") as rows_stream:
        for stream, kind in ((keys_stream, np.dtype(np.uint64)), (rows_stream, np.dtype(np.int64))):
            header = {"descr": kind.str, "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(stream, header)
        for keys, rows in whole_keys(sorter.blocks()):
            keys.tofile(keys_stream)
            (_best_first(job, keys, rows) - job.first_new).tofile(rows_stream)
    return keys_file, rows_file


def whole_keys(blocks: Iterator[Records]) -> Iterator[Records]:
    """Yield ascending records so that all records of a key come in one block."""
    held = np.empty(0, np.uint64), np.empty(0, np.int64)
    for keys, rows in blocks:
        keys, rows = np.concatenate([held[0], keys]), np.concatenate([held[1], rows])
        cut = int(np.searchsorted(keys, keys[-1])) if len(keys) else 0
        if cut:
            yield keys[:cut], rows[:cut]
        held = keys[cut:], rows[cut:]
    yield held


def _best_first(job: DedupJob, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the rows, those of one key in the order of their rank."""
    same_as_next = keys[:-1] == keys[1:]
    shared = np.zeros(len(keys), np.bool_)
    shared[:-1] |= same_as_next
    shared[1:] |= same_as_next
    places = np.flatnonzero(shared)
    if len(places):
        rows = rows.copy()
        rows[places] = rows[places][job.rank_columns(rows[places]).best_first((keys[places],))]
    return rows
