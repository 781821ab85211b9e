"""Documents that contain a stretch of the evaluation sets: a model must not be examined on what it has read.

What: every text in the evaluation records, cut into word 13-grams (Brown et al. 2020, appendix C), as 64-bit hashes.
A document matches where 13 words in a row, case, punctuation and layout aside, are one of them.
How: a polynomial hash that rolls from word to word (one multiplication each), and a look-up in an open table.
Cost: one pass over the text; 8 to 24 bytes of memory per n-gram of the evaluation sets.
Trap: texts shorter than n words have no n-gram, so short questions cannot be found this way.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import UserError

from .arrow_text import text_buffers
from .characters import SINGLE, TABLE_SIZE, WORD, character_classes, lower_case
from .words import class_of, decode, mix

if TYPE_CHECKING:
    import pyarrow

_BASE = np.uint64(0x9E3779B97F4A7C15)
_SEED = np.uint64(0x51ED270B27220A85)
NOBODY = -1


@dataclass(frozen=True)
class EvaluationIndex:
    """The n-grams of the evaluation sets: an open-addressing table and the record that each n-gram is from."""

    ngram: int
    keys: np.ndarray  # uint64[slots]
    owners: np.ndarray  # int32[slots], NOBODY where the slot is empty
    records: list[str]  # "eval/<file>:<line>" by owner number

    def matches(self, texts: "pyarrow.Array") -> tuple[np.ndarray, np.ndarray]:
        """Return (copied n-grams int64[documents], owner of the first one int32[documents] or NOBODY)."""
        data, offsets = text_buffers(texts)
        counts = np.zeros(len(texts), np.int64)
        owners = np.full(len(texts), NOBODY, np.int32)
        table = (character_classes(), lower_case())
        _match_batch(data, offsets, *table, self.ngram, self.keys, self.owners, counts, owners)
        return counts, owners


def build_index(files: Sequence[Path], ngram: int) -> EvaluationIndex:
    """Index every string of every record, the `id` aside. Raises UserError for a line that is not JSON."""
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
    data, offsets = text_buffers(pa.array(texts, pa.large_string()))
    grams, owners = _ngrams_of_batch(
        data, offsets, np.array(numbers, np.int32), character_classes(), lower_case(), ngram
    )
    size = 16
    while size < 2 * len(grams):
        size *= 2
    keys, slots = np.zeros(size, np.uint64), np.full(size, NOBODY, np.int32)
    _fill_table(grams, owners, keys, slots)
    return EvaluationIndex(ngram, keys, slots, records)


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
def plain_words(data, start, end, classes, lower, hashes):
    """Hash the words of data[start:end], letters and digits only and in lower case; return their number."""
    count = 0
    value = _SEED
    inside = False
    position = start
    while position < end:
        code_point, width = decode(data, position)
        kind = class_of(classes, code_point)
        position += width
        if inside and (not kind & WORD or kind & SINGLE):
            hashes[count] = mix(value)
            count += 1
            value = _SEED
            inside = False
        if kind & WORD:
            lowered = lower[code_point] if code_point < TABLE_SIZE else code_point
            value = (value ^ np.uint64(lowered)) * _BASE
            inside = True
            if kind & SINGLE:
                hashes[count] = mix(value)
                count += 1
                value = _SEED
                inside = False
    if inside:
        hashes[count] = mix(value)
        count += 1
    return count


@kernel
def rolling_ngrams(hashes, count, n, grams):
    """Fill grams[0 : count - n + 1] with the hash of each n words; return how many there are."""
    if count < n:
        return 0
    leaving = np.uint64(1)
    for _ in range(n - 1):
        leaving *= _BASE
    value = np.uint64(0)
    for i in range(count):
        if i >= n:
            value -= hashes[i - n] * leaving
        value = value * _BASE + hashes[i]
        if i >= n - 1:
            grams[i - n + 1] = mix(value)
    return count - n + 1


@kernel
def _longest(offsets):
    longest = 1
    for i in range(offsets.size - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    return longest


@kernel
def _ngrams_of_batch(data, offsets, numbers, classes, lower, n):
    longest = _longest(offsets)
    hashes, grams = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    room = data.size + 1
    all_grams, owners = np.empty(room, np.uint64), np.empty(room, np.int32)
    total = 0
    for i in range(offsets.size - 1):
        count = plain_words(data, offsets[i], offsets[i + 1], classes, lower, hashes)
        for k in range(rolling_ngrams(hashes, count, n, grams)):
            all_grams[total] = grams[k]
            owners[total] = numbers[i]
            total += 1
    return all_grams[:total].copy(), owners[:total].copy()


@kernel
def _fill_table(grams, owners, keys, slots):
    mask = keys.size - 1
    for i in range(grams.size):
        slot = np.int64(grams[i] & np.uint64(mask))
        while slots[slot] != NOBODY and keys[slot] != grams[i]:
            slot = (slot + 1) & mask
        if slots[slot] == NOBODY:  # the first record keeps an n-gram that several have
            keys[slot] = grams[i]
            slots[slot] = owners[i]


@kernel
def _match_batch(data, offsets, classes, lower, n, keys, slots, counts, owners):
    longest = _longest(offsets)
    hashes, grams = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    mask = keys.size - 1
    for i in range(offsets.size - 1):
        count = plain_words(data, offsets[i], offsets[i + 1], classes, lower, hashes)
        for k in range(rolling_ngrams(hashes, count, n, grams)):
            slot = np.int64(grams[k] & np.uint64(mask))
            while slots[slot] != NOBODY and keys[slot] != grams[k]:
                slot = (slot + 1) & mask
            if slots[slot] != NOBODY:
                counts[i] += 1
                if owners[i] == NOBODY:
                    owners[i] = slots[slot]
