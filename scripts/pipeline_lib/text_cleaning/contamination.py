"""Documents that contain a stretch of the evaluation sets: a model must not be examined on what it has read.

What: every text in the evaluation records, cut into word 13-grams (Brown et al. 2020, appendix C), as 64-bit hashes.
A document matches where 13 words in a row, case, punctuation and layout aside, are one of them. What a word is, and
which forms of a letter are the same, is what deduplication says (dedup.normalise, dedup.shingles).
How: one bit per hash, in a table of at least sixteen times as many bits as there are n-grams, sends nearly all others
away without leaving the cache; what passes is looked up in an open table.
Cost: one pass over the text; 40 to 64 bytes of memory per n-gram of the evaluation sets, 4 per further record with it.
Traps: texts shorter than n words have no n-gram, so short questions cannot be found this way. `ngrams` tells which.
Documents are compared as the stage leaves them: repaired, without personal data, without citation marks where C4 cuts
those. A record goes the same way, and each form of it that differs is indexed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dedup.normalise import TextBatch, normalise
from dedup.shingles import shingle_hashes
from pipeline_lib.compiled import kernel
from pipeline_lib.stage import UserError

from .arrow_text import text_buffers

if TYPE_CHECKING:
    import pyarrow

Rewrite = Callable[["pyarrow.Array"], "pyarrow.Array"]
"""What stage 02 does to texts before it compares them: a large_string array to another of the same length."""
NOBODY = -1
_FILTER_BITS = 16  # per n-gram


@dataclass(frozen=True)
class Matches:
    """What a batch of documents shares with the evaluation sets.

    counts: copied n-grams, int64[documents]; documents, grams: the document and the number of each of them, in the
    order of the text, int32[copied n-grams].
    """

    counts: np.ndarray
    documents: np.ndarray
    grams: np.ndarray


@dataclass(frozen=True)
class EvaluationIndex:
    """The n-grams of the evaluation sets, numbered, in an open-addressing table; and the records that have each."""

    ngram: int
    keys: np.ndarray  # uint64[slots]
    numbers: np.ndarray  # int32[slots]: number of the n-gram, NOBODY where the slot is empty
    filter: np.ndarray  # uint8[bytes, a power of two]
    starts: np.ndarray  # int64[n-grams + 1] into `owners`
    owners: np.ndarray  # int32[...]: the records that have n-gram g, ascending, are owners[starts[g] : starts[g + 1]]
    records: list[str]  # "eval/<file>:<line>" by record number
    ngrams: np.ndarray  # int64[records]: different n-grams of each, as documents read; those with none cannot be found

    def matches(self, texts: "pyarrow.Array") -> Matches:
        """Compare texts (a string array without nulls) with the evaluation sets."""
        grams, starts = ngram_hashes(texts, self.ngram)
        counts = np.zeros(len(texts), np.int64)
        documents, found = np.empty(len(grams), np.int32), np.empty(len(grams), np.int32)
        total = _match(grams, starts, self.filter, self.keys, self.numbers, counts, documents, found)
        return Matches(counts, documents[:total].copy(), found[:total].copy())

    def first_record(self, matches: Matches) -> list[str | None]:
        """Return, for each document, the first record that has the first n-gram it shares."""
        names: list[str | None] = [None] * len(matches.counts)
        documents, places = np.unique(matches.documents, return_index=True)
        for document, gram in zip(documents.tolist(), matches.grams[places].tolist(), strict=True):
            names[document] = self.records[self.owners[self.starts[gram]]]
        return names

    def documents_per_record(self, matches: Matches) -> tuple[np.ndarray, np.ndarray]:
        """Return (documents that share an n-gram with each record, the first of them or NOBODY): int32[records]."""
        shared = np.zeros(len(self.records), np.int32)
        first = np.full(len(self.records), NOBODY, np.int32)
        last = np.full(len(self.records), NOBODY, np.int32)
        _count_documents(matches.documents, matches.grams, self.starts, self.owners, shared, first, last)
        return shared, first


def build_index(files: Sequence[Path], ngram: int, rewrites: Sequence[Rewrite] = ()) -> EvaluationIndex:
    """Index every string of every record, the `id` aside, as it is and as each of `rewrites`, in turn, leaves it.

    Raises UserError for a line that is not JSON.
    """
    import pyarrow as pa

    texts: list[str] = []
    numbers: list[int] = []
    records: list[str] = []
    for file in files:
        for line, record in read_records(file):
            found = [text for key, value in record.items() if key != "id" for text in strings_in(value)]
            texts += found
            numbers += [len(records)] * len(found)
            records.append(f"eval/{file.name}:{line}")
    forms, places = _forms(pa.array(texts, pa.large_string()), rewrites)
    as_documents_read = np.zeros(len(places), np.bool_)
    last = np.zeros(len(texts), np.int64)
    last[places] = np.arange(len(places))  # of equal places the last one counts
    as_documents_read[last] = True
    grams, starts = ngram_hashes(forms, ngram)
    record_of = np.repeat(np.array(numbers, np.int64)[places], np.diff(starts))
    different, gram_of = np.unique(grams, return_inverse=True)
    pairs = gram_of << 32 | record_of
    owned = np.unique(pairs)
    countable = np.unique(pairs[np.repeat(as_documents_read, np.diff(starts))]) & 0xFFFFFFFF
    per_gram = np.bincount(owned >> 32, minlength=len(different))
    size = _power_of_two(2 * len(different))
    keys, slots = np.zeros(size, np.uint64), np.full(size, NOBODY, np.int32)
    bits = np.zeros(_power_of_two(_FILTER_BITS * len(different) // 8), np.uint8)
    _fill_table(different, keys, slots, bits)
    owners = (owned & 0xFFFFFFFF).astype(np.int32)
    return EvaluationIndex(
        ngram,
        keys,
        slots,
        bits,
        np.append(0, np.cumsum(per_gram)),
        owners,
        records,
        np.bincount(countable, minlength=len(records)),
    )


def _forms(texts: "pyarrow.Array", rewrites: Sequence[Rewrite]) -> tuple["pyarrow.Array", np.ndarray]:
    """Return (the texts and what each rewriting changes, in turn; the place in `texts` of each, int64[forms])."""
    import pyarrow as pa
    import pyarrow.compute as pc

    forms, places = [texts], [np.arange(len(texts))]
    for rewrite in rewrites:
        rewritten = rewrite(texts)
        changed = np.flatnonzero(pc.not_equal(texts, rewritten).to_numpy(zero_copy_only=False))
        forms.append(rewritten.take(pa.array(changed)))
        places.append(changed)
        texts = rewritten
    return pa.concat_arrays(forms), np.concatenate(places)


def _power_of_two(least: int) -> int:
    return 1 << max(4, (least - 1).bit_length())


def ngram_hashes(texts: "pyarrow.Array", ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (hashes uint64[n-grams], starts int64[texts + 1]), in the order of the texts, repeats included."""
    return shingle_hashes(normalise(TextBatch(*text_buffers(texts))), "word", ngram)


def read_records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, record). Raises UserError for a line that is not a JSON object."""
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}:{number} is not JSON ({error}); run stage 01 again with --force") from None
            if not isinstance(record, dict):
                raise UserError(f"{file}:{number} is not a JSON object; run stage 01 again with --force")
            yield number, record


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)


@kernel
def _fill_table(grams, keys, numbers, bits):
    mask, bit_mask = np.uint64(keys.size - 1), np.uint64(8 * bits.size - 1)
    for i in range(grams.size):
        slot = np.int64(grams[i] & mask)
        while numbers[slot] != NOBODY:
            slot = (slot + 1) & np.int64(mask)
        keys[slot] = grams[i]
        numbers[slot] = i
        bit = grams[i] & bit_mask
        bits[np.int64(bit >> np.uint64(3))] |= np.uint8(1) << np.uint8(bit & np.uint64(7))


@kernel
def _match(grams, starts, bits, keys, numbers, counts, documents, found):
    mask, bit_mask = np.uint64(keys.size - 1), np.uint64(8 * bits.size - 1)
    total = 0
    for document in range(counts.size):
        for i in range(starts[document], starts[document + 1]):
            bit = grams[i] & bit_mask
            if not bits[np.int64(bit >> np.uint64(3))] >> np.uint8(bit & np.uint64(7)) & 1:
                continue
            slot = np.int64(grams[i] & mask)
            while numbers[slot] != NOBODY and keys[slot] != grams[i]:
                slot = (slot + 1) & np.int64(mask)
            if numbers[slot] != NOBODY:
                counts[document] += 1
                documents[total] = document
                found[total] = numbers[slot]
                total += 1
    return total


@kernel
def _count_documents(documents, grams, starts, owners, shared, first, last):
    for i in range(documents.size):
        for k in range(starts[grams[i]], starts[grams[i] + 1]):
            record = owners[k]
            if last[record] != documents[i]:
                last[record] = documents[i]
                shared[record] += 1
                if first[record] == NOBODY:
                    first[record] = documents[i]
