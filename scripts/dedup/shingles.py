"""Words and word 5-grams of a normalised text, as 64-bit hashes.

What: a token is a maximal run of letters, digits and underscores; in scripts without spaces (Han, kana, Thai, Khmer,
Myanmar, ...) each such code point is a token. Combining marks belong to the token they follow. Everything else
separates. With the unit "character" every code point, spaces included, is a token.
A shingle is `ngram` consecutive tokens. Its hash is mix(sum of A[j] * hash(token j)) mod 2^64 with odd A[j], which
depends on the order of the words; a document's shingle set is the set of these hashes (two different shingles share
a hash once in 2^64 pairs: no document set that fits on a disk will show it).
How: one pass hashes tokens, a second one combines neighbours; the second has no branches and runs in vector registers.
Cost: the first pass is the slow one, one mispredicted branch per word: about 300 MB/s per core of English.
Trap: numba promotes uint32 * uint32 to uint64 and uint64 with int64 to float64: constants are uint64 on purpose.
"""

from functools import cache

import numpy as np

from pipeline_lib.compiled import kernel

from .normalise import TextBatch, decode, tables
from .unicode_fold import MARK, SEPARATOR, SINGLE, WORD

UNITS = {"word": 0, "character": 1}

HASH_START = np.uint64(0x9AE16A3B2F90404F)
HASH_STEP = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
HALF = np.uint64(33)
POSITION_STEP = np.uint64(0xD1342543DE82EF95)


@cache
def ascii_words() -> np.ndarray:
    """Return bool[128]: which ASCII bytes belong to words (the kind table's first half page, made one look-up)."""
    frozen = tables()
    first = int(frozen.page[0]) << 8
    return frozen.kind[first : first + 128] == WORD


@kernel(inline="always")
def mix(value):
    """Scramble 64 bits so that every input bit reaches every output bit (the finaliser of MurmurHash3)."""
    value = (value ^ (value >> HALF)) * MIX_1
    value = (value ^ (value >> HALF)) * MIX_2
    return value ^ (value >> HALF)


def position_multipliers(ngram: int) -> np.ndarray:
    """Return the odd multiplier of each position in a shingle: uint64[ngram], powers of one odd constant."""
    multipliers = np.empty(ngram, np.uint64)
    power = 1
    for position in range(ngram):
        multipliers[position] = power
        power = power * int(POSITION_STEP) % 2**64
    return multipliers


@kernel
def _word_tokens(data, begin, end, ascii_word, page, kinds, out):
    """Write the hash of each word token of one normalised document to `out`; returns how many."""
    count = 0
    state = HASH_START
    is_open, is_single = False, False
    here = begin
    while here < end:
        byte = data[here]
        if byte < 0x80 and ascii_word[byte]:
            if is_open and is_single:
                out[count] = mix(state)
                count += 1
                is_open = False
            if not is_open:
                state = HASH_START
                is_open, is_single = True, False
            while True:  # most bytes of most texts are read here
                state = (state ^ np.uint64(byte)) * HASH_STEP
                here += 1
                if here == end:
                    break
                byte = data[here]
                if byte >= 0x80 or not ascii_word[byte]:
                    break
            continue
        kind = SEPARATOR
        code_point, length = np.int64(byte), 1
        if byte >= 0x80:
            code_point, length = decode(data, here, end)
            kind = kinds[np.int64(page[code_point >> 8]) << 8 | code_point & 0xFF]
        here += length
        if is_open and (kind in (SINGLE, SEPARATOR) or (kind == WORD and is_single)):
            out[count] = mix(state)
            count += 1
            is_open = False
        if kind in (WORD, SINGLE):
            if not is_open:
                state = HASH_START
                is_open, is_single = True, kind == SINGLE
            state = (state ^ np.uint64(code_point)) * HASH_STEP
        elif kind == MARK and is_open:
            state = (state ^ np.uint64(code_point)) * HASH_STEP
    if is_open:
        out[count] = mix(state)
        count += 1
    return count


@kernel
def _character_tokens(data, begin, end, out):
    count = 0
    here = begin
    while here < end:
        code_point, length = decode(data, here, end)
        here += length
        out[count] = mix((HASH_START ^ np.uint64(code_point)) * HASH_STEP)
        count += 1
    return count


@kernel
def _combine(tokens, count, multipliers, out, position):
    """Write the hash of each run of len(multipliers) tokens; returns how many."""
    shingles = count - len(multipliers) + 1
    for first in range(shingles):
        total = np.uint64(0)
        for offset in range(len(multipliers)):
            total += tokens[first + offset] * multipliers[offset]
        out[position + first] = mix(total)
    return max(shingles, 0)


@kernel
def _shingle(data, starts, unit, ascii_word, page, kinds, multipliers, tokens, out, out_starts):
    position = np.int64(0)
    for document in range(len(starts) - 1):
        out_starts[document] = position
        begin, end = starts[document], starts[document + 1]
        if unit == 0:
            count = _word_tokens(data, begin, end, ascii_word, page, kinds, tokens)
        else:
            count = _character_tokens(data, begin, end, tokens)
        position += _combine(tokens, count, multipliers, out, position)
    out_starts[len(starts) - 1] = position
    return position


def shingle_hashes(batch: TextBatch, unit: str, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (hashes uint64[shingles], starts int64[documents + 1]) of normalised documents, in text order, repeats
    included. A document with fewer than `ngram` tokens has none.
    """
    sizes = np.diff(batch.starts)
    frozen = tables()
    # Every token takes at least one byte, so these bounds hold; pages that nobody writes cost no memory.
    tokens = np.empty(int(sizes.max(initial=0)), np.uint64)
    out = np.empty(int(sizes.sum()), np.uint64)
    starts = np.empty(len(batch.starts), np.int64)
    used = _shingle(
        batch.data,
        batch.starts,
        UNITS[unit],
        ascii_words(),
        frozen.page,
        frozen.kind,
        position_multipliers(ngram),
        tokens,
        out,
        starts,
    )
    return out[:used], starts


@kernel
def _squeeze(hashes, starts, out_starts):
    """Drop repeats inside each ascending run, in place; returns the number of hashes left."""
    position = np.int64(0)
    for document in range(len(starts) - 1):
        out_starts[document] = position
        for index in range(starts[document], starts[document + 1]):
            if index == starts[document] or hashes[index] != hashes[index - 1]:
                hashes[position] = hashes[index]
                position += 1
    out_starts[len(starts) - 1] = position
    return position


def shingle_sets(batch: TextBatch, unit: str, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (hashes, starts) like `shingle_hashes`, each document's hashes ascending and distinct."""
    hashes, starts = shingle_hashes(batch, unit, ngram)
    for document in range(len(starts) - 1):
        hashes[starts[document] : starts[document + 1]].sort()  # numpy's vectorised sort: 5x the compiled one here
    set_starts = np.empty(len(starts), np.int64)
    used = _squeeze(hashes, starts, set_starts)
    return hashes[:used], set_starts
