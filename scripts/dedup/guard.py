"""The wipe-out guard: a run that would delete most of a source stops and shows what it was about to do.

Verified removal makes such a run rare, not impossible: a crawl of one page under a thousand addresses is right to
shrink to a page, a data set of templated records with a low threshold is not. Only a person can tell them apart, so
the message shows pairs, and one setting says "yes, I mean it".
"""

import numpy as np

from pipeline_lib.stage import StageFailure

from .corpus import Corpus
from .parameters import PARTS, DedupParameters
from .receipts import Removals

EXAMPLES = 5


def check_no_source_is_wiped_out(corpus: Corpus, removals: Removals, parameters: DedupParameters) -> None:
    """Raise StageFailure, with examples, when a source of `guard_minimum` documents loses more than its limit."""
    sketches = removals.sketches
    total = np.bincount(sketches.source, minlength=len(sketches.sources))
    lost = np.bincount(sketches.source[removals.row], minlength=len(sketches.sources))
    limit = round(parameters.max_removed_fraction * PARTS)
    too_many = (total >= parameters.guard_minimum) & (lost * PARTS > limit * total)
    if too_many.any():
        source = int(np.argmax(too_many))
        raise StageFailure(
            f"dedup: source {sketches.sources[source]!r} would lose {lost[source]} of {total[source]} documents, more "
            f"than max_removed_fraction = {parameters.max_removed_fraction:g} allows. If these pairs are duplicates, "
            f"raise max_removed_fraction; if they are not, raise jaccard:\n{_examples(corpus, removals, source)}"
        )


def _examples(corpus: Corpus, removals: Removals, source: int) -> str:
    """Return a few removed documents of the source beside their survivors, spread over the source."""
    removed = np.flatnonzero(removals.sketches.source[removals.row] == source)
    chosen = removed[np.linspace(0, len(removed) - 1, min(EXAMPLES, len(removed))).astype(np.int64)]
    ids = removals.sketches.ids
    lines = []
    for index in chosen:
        row, survivor = int(removals.row[index]), int(removals.survivor[index])
        lines += [
            f"  {removals.kind[index]}: jaccard {removals.jaccard[index]:.3f}, "
            f"containment {removals.containment[index]:.3f}",
            f"    removed {ids[row].as_py()}: {corpus.preview(row)}",
            f"    kept    {ids[survivor].as_py()}: {corpus.preview(survivor)}",
        ]
    return "\n".join(lines)
