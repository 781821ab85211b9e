"""The steps `bands` and `group`: which rows share a band's key, and which of them can influence each other's fate."""

import numpy as np

from .array_files import save_arrays
from .components import groups_of, join_neighbours
from .external_sort import repeated
from .job import DedupJob
from .known import with_known
from .set_file import set_places
from .sketch import band_name

LEAST_GROUP = 4096


def find_buckets(job: DedupJob, band: int, share: int) -> None:
    """Find the buckets of one band, using a `share`-th of the memory left."""
    sorter = job.sorter(f"band-{band:04d}", share)
    for row, (keys,) in job.sketches.batches([band_name(band)], job.first_new_file):
        chosen = np.flatnonzero(job.comparable[row - job.first_new : row - job.first_new + len(keys)])
        sorter.add(keys.to_numpy()[chosen], chosen + row)
    tables = job.known.tables.get(band_name(band), [])
    blocks = with_known(sorter.blocks(), tables, job.parameters.candidates_per_band)
    parts = list(repeated(blocks))
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])
    buckets = np.concatenate([np.empty(0, np.int64), *(groups for _, groups in parts)])
    save_arrays(job.band_file(band), row=rows, bucket=buckets)


def group_candidates(job: DedupJob) -> None:
    """Collect the candidates of all bands and cut them into groups that can be resolved apart."""
    is_candidate = np.zeros(len(job.sketches), np.bool_)
    for band in range(job.parameters.bands):
        is_candidate[job.buckets(band)[0]] = True
    rows = np.flatnonzero(is_candidate)
    parent = np.arange(len(rows))
    for band in range(job.parameters.bands):
        members, buckets = job.buckets(band)
        join_neighbours(parent, np.searchsorted(rows, members), buckets)
    share = job.limit.room() // (2 * job.workers * job.parameters.bytes_per_candidate)
    wished = max(min(share, len(rows) // (4 * job.workers) + 1), LEAST_GROUP)
    shingles = job.sketches.take(rows, ["shingles"])[0].to_numpy()
    piece = np.searchsorted(job.sketches.starts, rows, side="right") - 1
    save_arrays(job.groups_file, row=rows, group=groups_of(parent, wished), begin=set_places(shingles, piece))
