"""Every score of the Gopher and FineWeb rules as a column, computed once over Arrow's own bytes.

Thresholds are applied to these columns later (`rules.py`), so trying another threshold reads no text. The compiled loop
takes the offsets and bytes of the Arrow array as they are, without a Python object per document, and releases the
interpreter lock. Scratch arrays are as long as the longest text of the batch; the operating system hands out only the
pages that are touched.
Cost: about 35 MB/s of English on one core. A cold start compiles for about ten seconds, once per machine: the result is
kept on disk.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline_lib.compiled import kernel

from .arrow_text import text_buffers
from .characters import character_classes
from .hash_set import mask_for, new_slots
from .lines import count_marks, line_scores, paragraph_scores
from .repetition import repetition_scores
from .words import HAS_LETTER, HAS_MORE_THAN_PUNCTUATION, hash_words, split

if TYPE_CHECKING:
    import pyarrow

WORD_COLUMNS = ("words", "word_length", "hash_ratio", "ellipsis_ratio", "alphabetic_words", "stop_words")
LINE_COLUMNS = (
    "bullet_lines",
    "ellipsis_lines",
    "duplicate_lines",
    "duplicate_line_characters",
    "terminal_lines",
    "short_lines",
    "duplicate_characters",
    "newlines_per_word",
)
FINEWEB_COLUMNS = LINE_COLUMNS[4:]
PARAGRAPH_COLUMNS = ("duplicate_paragraphs", "duplicate_paragraph_characters")
REPETITION_COLUMNS = ("top_2gram", "top_3gram", "top_4gram", *(f"duplicate_{n}gram" for n in range(5, 11)))
SCORE_COLUMNS = ("characters", *WORD_COLUMNS, *LINE_COLUMNS, *PARAGRAPH_COLUMNS, *REPETITION_COLUMNS)

_LINES_AT = 1 + len(WORD_COLUMNS)
_PARAGRAPHS_AT = _LINES_AT + len(LINE_COLUMNS)
_REPETITION_AT = _PARAGRAPHS_AT + len(PARAGRAPH_COLUMNS)
_STAMPS = 11  # hash sets that one document uses: lines, paragraphs, nine n-gram sizes


def score_documents(
    texts: "pyarrow.Array", stop_words: Sequence[str], short_line_characters: int
) -> dict[str, np.ndarray]:
    """Return {score column: float64[documents]} for normalised texts (a string or large_string array without nulls).

    An empty text scores 0 everywhere. Raises ValueError for nulls or more documents than one batch may have.
    """
    data, offsets = text_buffers(texts)
    if len(texts) > np.iinfo(np.int32).max // _STAMPS - 1:
        raise ValueError(f"{len(texts)} documents in one batch are too many; score them in batches of a few thousand")
    out = np.zeros((len(texts), len(SCORE_COLUMNS)))
    stops = np.unique(hash_words(list(stop_words)))
    _score_batch(data, offsets, character_classes(), stops, short_line_characters, out)
    return {name: out[:, i].copy() for i, name in enumerate(SCORE_COLUMNS)}


def score_again_for_fineweb(
    scores: dict[str, np.ndarray], texts: "pyarrow.Array", changed: np.ndarray, short_line_characters: int
) -> None:
    """Make the characters and the FINEWEB_COLUMNS of `scores` those of what the changed texts have become, in place.

    texts: as in `score_documents`, all of the batch; changed: places, int64[...]. No n-gram is counted again.
    """
    if not len(changed):
        return
    data, offsets = text_buffers(texts.take(changed))
    out = np.zeros((len(changed), 1 + len(LINE_COLUMNS)))
    _score_lines_batch(data, offsets, character_classes(), short_line_characters, out)
    for name in ("characters", *FINEWEB_COLUMNS):
        scores[name][changed] = out[:, ("characters", *LINE_COLUMNS).index(name)]


@kernel
def _word_scores(data, start, end, lengths, hashes, flags, count, stops, out):
    plain, plain_characters, alphabetic = 0, 0, 0
    found = np.zeros(stops.size, np.bool_)
    sieve = np.uint64(0)  # one bit per hash modulo 64: most words need no search
    for stop in stops:
        sieve |= np.uint64(1) << (stop & np.uint64(63))
    for i in range(count):
        if flags[i] & HAS_MORE_THAN_PUNCTUATION:
            plain += 1
            plain_characters += lengths[i]
        alphabetic += (flags[i] & HAS_LETTER) != 0
        if (sieve >> (hashes[i] & np.uint64(63))) & np.uint64(1):
            place = np.searchsorted(stops, hashes[i])
            if place < stops.size and stops[place] == hashes[i]:
                found[place] = True
    signs, ellipses = count_marks(data, start, end)
    out[0] = plain
    out[1] = plain_characters / plain if plain else 0.0
    out[2] = signs / count if count else 0.0
    out[3] = ellipses / count if count else 0.0
    out[4] = alphabetic / count if count else 0.0
    out[5] = found.sum()


@kernel
def _longest(offsets):
    longest = 1
    for i in range(offsets.size - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    return longest


@kernel
def _count_lines(data, start, end):
    lines = 1
    for k in range(start, end):
        lines += data[k] == 0x0A
    return lines


@kernel
def _score_lines_batch(data, offsets, classes, short_line, out):
    longest = _longest(offsets)
    begins, ends = np.empty(longest, np.int64), np.empty(longest, np.int64)
    lengths, hashes, flags = np.empty(longest, np.int32), np.empty(longest, np.uint64), np.empty(longest, np.uint8)
    keys, stamps = new_slots(1024)
    for i in range(offsets.size - 1):
        start, end = offsets[i], offsets[i + 1]
        if start == end:
            continue
        count, characters = split(data, start, end, classes, begins, ends, lengths, hashes, flags)
        mask = mask_for(_count_lines(data, start, end))
        if mask >= keys.size:
            keys, stamps = new_slots(mask)
        row = out[i]
        row[0] = characters
        line_scores(data, start, end, characters, count, classes, short_line, keys, stamps, mask, i + 1, row[1:])


@kernel
def _score_batch(data, offsets, classes, stops, short_line, out):
    longest = _longest(offsets)
    begins, ends = np.empty(longest, np.int64), np.empty(longest, np.int64)
    lengths, hashes, flags = np.empty(longest, np.int32), np.empty(longest, np.uint64), np.empty(longest, np.uint8)
    grams, sums = np.empty(longest, np.uint64), np.empty(longest + 1, np.int64)
    keys, stamps = new_slots(1024)
    places, slots = np.empty(longest, np.int32), np.empty(longest, np.int32)
    occurrences, seen = np.empty(keys.size, np.int32), np.zeros(keys.size, np.int32)
    stamp = 1
    for i in range(offsets.size - 1):
        start, end = offsets[i], offsets[i + 1]
        if start == end:
            continue
        count, characters = split(data, start, end, classes, begins, ends, lengths, hashes, flags)
        mask = mask_for(max(count, _count_lines(data, start, end)))
        if mask >= keys.size:
            keys, stamps = new_slots(mask)
            occurrences, seen = np.empty(keys.size, np.int32), np.zeros(keys.size, np.int32)
        row = out[i]
        row[0] = characters
        _word_scores(data, start, end, lengths, hashes, flags, count, stops, row[1:])
        line_scores(
            data, start, end, characters, count, classes, short_line, keys, stamps, mask, stamp, row[_LINES_AT:]
        )
        paragraph_scores(data, start, end, characters, classes, keys, stamps, mask, stamp + 1, row[_PARAGRAPHS_AT:])
        repetition_scores(
            hashes, lengths, count, characters, keys, stamps, stamp + 2, mask, grams, sums, places, slots, occurrences,
            seen, row[_REPETITION_AT:],
        )  # fmt: skip
        stamp += _STAMPS
