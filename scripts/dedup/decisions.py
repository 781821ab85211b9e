"""The step `resolve`: who of a group of candidates stays, on the real shingle sets (the rule is in clusters.py)."""

import numpy as np

from .array_files import save_arrays
from .clusters import NO_LIMIT, SURVIVES, resolve
from .components import bucket_matrix
from .job import DedupJob
from .set_file import page_release


def resolve_group(job: DedupJob, group: int, share: int) -> None:
    """Decide who of a group stays, mapping a `share`-th of the memory left."""
    mine = np.flatnonzero(job.candidates["group"] == group)
    rows = job.candidates["row"][mine]
    numbers, bucket_count = bucket_matrix(rows, [job.buckets(band) for band in range(job.parameters.bands)])
    order = job.rank_columns(rows).best_first()
    begin, size = job.candidates["begin"][mine][order], job.set_sizes[mine][order]
    stored = np.memmap(job.sets_path, np.uint64, "r") if size.any() else np.empty(0, np.uint64)
    is_limited = job.limit.bytes is not None and isinstance(stored, np.memmap)
    survivor, shared = resolve(
        numbers[order],
        bucket_count,
        stored.view(np.ndarray),
        begin,
        size,
        jaccard_parts=job.parameters.jaccard_parts,
        containment_parts=job.parameters.containment_parts,
        candidates_per_band=job.parameters.candidates_per_band,
        fixed=int(np.count_nonzero(rows < job.first_new)),
        joins=job.among_themselves,
        touch_limit=job.limit.room() // (2 * share) if is_limited else NO_LIMIT,
        release=page_release(stored) if is_limited else (lambda: None),
    )
    gone = np.flatnonzero(survivor != SURVIVES)
    kept = survivor[gone]
    save_arrays(
        job.resolved_file(group),
        row=rows[order[gone]],
        survivor=rows[order[kept]],
        shared=shared[gone],
        size=size[gone],
        other_size=size[kept],
    )
