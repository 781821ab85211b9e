"""The wipe-out guard: a run that would delete most of a source stops and shows what it was about to do.

Verified removal makes such a run rare, not impossible: a crawl of one page under a thousand addresses is right to
shrink to a page, a data set of templated records with a low threshold is not. Only a person can tell them apart, so
the message shows pairs, and one setting says "yes, I mean it". The same holds for one document in whose favour very
many others would go without being equal to it.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.stage import StageFailure

from .parameters import PARTS, DedupParameters
from .receipts import Removals

EXAMPLES = 20
COLUMNS = 100
"""Characters of each preview that are shown."""
RAISE_JACCARD = "raise jaccard, with which deduplication begins anew, and in stage 02 cleaning too"


def check_limits(removals: Removals, parameters: DedupParameters) -> None:
    """Raise StageFailure, with examples, when a source or a cluster would lose more than its limit."""
    _check_sources(removals, parameters)
    _check_clusters(removals, parameters)


def _check_sources(removals: Removals, parameters: DedupParameters) -> None:
    total: dict[str, int] = {}
    first_file = int(np.searchsorted(removals.sketches.starts, removals.first_new))
    for _, (source,) in removals.sketches.batches(["source"], first_file):
        for pair in pc.value_counts(source).to_pylist():
            total[pair["values"]] = total.get(pair["values"], 0) + pair["counts"]
    sources = removals.sketches.take(removals.row, ["source"])[0]
    lost = {pair["values"]: pair["counts"] for pair in pc.value_counts(sources).to_pylist()}
    limit = round(parameters.max_removed_fraction * PARTS)
    for name in sorted(lost):
        if total[name] < parameters.guard_minimum or lost[name] * PARTS <= limit * total[name]:
            continue
        removed = pc.indices_nonzero(pc.equal(sources, pa.scalar(name, pa.large_string()))).to_numpy()
        raise StageFailure(
            f"dedup: source {name!r} would lose {lost[name]} of {total[name]} documents, more than "
            f"max_removed_fraction = {parameters.max_removed_fraction:g} allows. If these pairs are duplicates, raise "
            f"max_removed_fraction; if they are not, {RAISE_JACCARD}:\n"
            f"{examples(removals, removed.astype(np.int64))}"
        )


def _check_clusters(removals: Removals, parameters: DedupParameters) -> None:
    survivors, count = np.unique(removals.survivor[~removals.is_exact], return_counts=True)
    if not len(count) or count.max() <= parameters.max_cluster:
        return
    largest = survivors[np.argmax(count)]
    identity = removals.sketches.take(np.array([largest]), ["id"])[0][0].as_py()
    removed = np.flatnonzero((removals.survivor == largest) & ~removals.is_exact)
    raise StageFailure(
        f"dedup: {count.max()} documents would be removed as fuzzy duplicates of {identity!r} alone, more than "
        f"max_cluster = {parameters.max_cluster} allows. If these pairs are duplicates, raise max_cluster; if they are "
        f"not, {RAISE_JACCARD}:\n{examples(removals, removed)}"
    )


def examples(removals: Removals, chosen: np.ndarray) -> str:
    """Return up to EXAMPLES removed documents beside their survivors, spread over those chosen."""
    spread = chosen[np.linspace(0, len(chosen) - 1, min(EXAMPLES, len(chosen))).astype(np.int64)]
    lines = []
    for pair in removals.table(spread).to_pylist():
        lines += [
            f"  {pair['kind']}: jaccard {pair['jaccard']:.3f}, containment {pair['containment']:.3f}",
            f"    removed {pair['id']}: {_one_line(pair['preview'])}",
            f"    kept    {pair['survivor_id']}: {_one_line(pair['survivor_preview'])}",
        ]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:COLUMNS]
