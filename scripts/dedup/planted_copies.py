"""Recall measured on the user's own documents: edited copies of them go in, and how many are found is counted.

What: some of the documents that stay are copied with one passage of 5 to 30 % of their words replaced by words of
another document. The copies are looked up among the documents that stay, as a source that is subtracted (index.py):
they are compared with survivors, never entered, so that planting cannot change what is kept.
Why a passage and not words here and there: a replaced word takes five 5-grams with it, so that 5 % of scattered words
already mean a Jaccard similarity of 0.63; passages give similarities on both sides of the threshold. Small edits are
as likely as large ones by ratio (5 to 10 % as 10 to 20 %), so that about a third of the copies reach 0.8.
What is stated: of the copies whose measured similarity to their original reaches both thresholds, the fraction that was
found. A copy below them is not a duplicate by the user's own definition, and is counted apart.
Cost: about ten times the copied text in memory, which `max_ram` does not see; so there are as many copies as hold
MOST_BYTES of text together.
"""

import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import steps
from .corpus import Corpus
from .external_sort import Records
from .job import DedupJob
from .known import Known, Table
from .normalise import batch_of, normalise
from .receipts import Removals
from .removals import collect
from .shingles import shingle_sets
from .sketch import band_name
from .unicode_fold import SPACELESS_BLOCKS
from .verify import is_duplicate, shared_shingles

_SPACELESS = "".join(f"{chr(low)}-{chr(high)}" for low, high in SPACELESS_BLOCKS)
WORD = re.compile(rf"(?=\w)[{_SPACELESS}](?:(?!\w)[{_SPACELESS}])*|[^\s{_SPACELESS}]+|[{_SPACELESS}]")
"""A letter of a script without spaces, with its marks; a run of anything else but white space."""
BETWEEN_SPACELESS = re.compile(rf"(?<=[{_SPACELESS}]) (?=[{_SPACELESS}])")
LEAST_SHINGLES = 30
LEAST_EDIT, MOST_EDIT = 0.05, 0.30
MOST_BYTES = 20_000_000  # of the text that is copied


@dataclass(frozen=True)
class MeasuredRecall:
    """What became of the planted copies; `found <= duplicates <= planted <= asked`."""

    asked: int
    planted: int
    """Fewer than asked where fewer documents are long enough, or MOST_BYTES hold no more."""
    duplicates: int
    """Copies that reach both thresholds with their original."""
    found: int

    @property
    def recall(self) -> float | None:
        """found / duplicates, None when no copy was a duplicate."""
        return self.found / self.duplicates if self.duplicates else None

    def to_json(self) -> dict[str, Any]:
        """Return the counts and the recall."""
        return {**asdict(self), "recall": self.recall}


def measure_recall(job: DedupJob, removals: Removals, copies: int) -> MeasuredRecall:
    """Plant up to `copies` copies of documents that `job` keeps, and count those that would be removed."""
    originals = _choose(job, removals, copies)
    texts = _read(job, originals)
    rng = random.Random(job.parameters.seed)
    edited = [_edit(text, texts[number - 1], rng) for number, text in enumerate(texts)]
    folder = job.folder / "planted"
    file = folder / "planted.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"planted-{number}" for number in range(len(edited))]
    pq.write_table(pa.table({"id": names, "text": pa.array(edited, pa.large_string())}), file)
    duplicates = _are_duplicates(job, texts, edited)
    found = _removed(job, removals, file)
    return MeasuredRecall(copies, len(edited), int(duplicates.sum()), int((duplicates & found).sum()))


def _choose(job: DedupJob, removals: Removals, copies: int) -> np.ndarray:
    """Return rows of kept documents with the lowest digests: the same whatever the order of the files.

    As many of the first `copies` as hold MOST_BYTES together; one that is longer than that alone is passed over.
    """
    long_enough = job.sketches.numbers("shingles", len(job.known.sketches)) >= LEAST_SHINGLES
    rows = np.flatnonzero(long_enough & removals.stays())
    digests = job.sketches.numbers("digest_high", len(job.known.sketches))[rows]
    chosen = rows[np.argsort(digests)[:copies]] + job.first_new
    lengths = job.sketches.take(chosen, ["length"])[0].to_numpy()
    chosen, lengths = chosen[lengths <= MOST_BYTES], lengths[lengths <= MOST_BYTES]
    return np.sort(chosen[np.cumsum(lengths) <= MOST_BYTES])


def _read(job: DedupJob, rows: np.ndarray) -> list[str]:
    texts: list[str] = []
    for corpus, piece in job.pieces:
        low, high = np.searchsorted(rows, [piece.first, piece.first + piece.rows])
        if low == high:
            continue
        first = piece.first
        for table in corpus.read(piece, [corpus.text_column]):
            low, high = np.searchsorted(rows, [first, first + len(table)])
            texts += table.column(corpus.text_column).take(pa.array(rows[low:high] - first)).to_pylist()
            first += len(table)
    return texts


def _edit(text: str, other: str, rng: random.Random) -> str:
    """Replace one passage of 5 to 30 % of the words by words of another text."""
    words, foreign = list(WORD.finditer(text)), WORD.findall(other)
    count = max(1, round(len(words) * LEAST_EDIT * (MOST_EDIT / LEAST_EDIT) ** rng.random()))
    first = rng.randrange(max(len(words) - count, 0) + 1)
    passage = _joined([rng.choice(foreign) for _ in range(count)])
    return text[: words[first].start()] + passage + text[words[first + count - 1].end() :]


def _joined(words: list[str]) -> str:
    """Write words as a text: with a blank in between, except where both sides are of a script without spaces."""
    text = " ".join(words)
    return text if text.isascii() else BETWEEN_SPACELESS.sub("", text)


def _are_duplicates(job: DedupJob, texts: list[str], edited: list[str]) -> np.ndarray:
    parameters = job.parameters
    sets, starts = shingle_sets(normalise(batch_of([*texts, *edited])), parameters.shingle, parameters.ngram)
    result = np.zeros(len(texts), np.bool_)
    for number in range(len(texts)):
        copy = number + len(texts)
        theirs, mine = sets[starts[number] : starts[number + 1]], sets[starts[copy] : starts[copy + 1]]
        shared = shared_shingles(mine, theirs)
        result[number] = len(mine) > 0 and is_duplicate(
            shared, len(mine), len(theirs), parameters.jaccard_parts, parameters.containment_parts
        )
    return result


def _removed(job: DedupJob, removals: Removals, file: Path) -> np.ndarray:
    """bool[copies]: which are duplicates of a document that stays."""
    corpus = Corpus((file,))
    lookup = DedupJob(corpus, job.parameters, file.parent, job.limit, job.workers, among_themselves=False)
    steps.sketch_all(lookup)
    names = ["digest_high", *(band_name(band) for band in range(job.parameters.bands))]
    tables = {name: [_table_of_hits(job, removals, name, lookup.sketches.numbers(name))] for name in names}
    known = Known(
        pieces=tuple(job.pieces),
        sketches=tuple(job.sketches.files),
        eras=(0,),
        rows=len(job.sketches),
        tables=tables,
    )
    planted = DedupJob(corpus, job.parameters, file.parent, job.limit, job.workers, known, among_themselves=False)
    steps.run(planted)
    return ~collect(planted).stays()


def _table_of_hits(job: DedupJob, removals: Removals, name: str, wanted: np.ndarray) -> Table:
    """Return the kept rows that have one of these keys, sorted for look-up."""
    wanted = np.unique(wanted)
    keys, rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    stays = removals.stays()
    for first, (column, shingles) in job.sketches.batches([name, "shingles"]):
        values = column.to_numpy()
        place = np.minimum(np.searchsorted(wanted, values), max(len(wanted) - 1, 0))
        hit = (wanted[place] == values) if len(wanted) else np.zeros(len(values), np.bool_)
        if name != "digest_high":
            hit &= shingles.to_numpy() > 0
        own = np.arange(first, first + len(values)) - removals.first_new
        hit &= (own < 0) | stays[np.maximum(own, 0)]
        keys.append(values[hit])
        rows.append(own[hit] + removals.first_new)
    found: Records = np.concatenate(keys), np.concatenate(rows)
    order = job.rank_columns(found[1]).best_first((found[0],))
    return Table(found[0][order], found[1][order], 0)
