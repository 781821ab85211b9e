"""Count the pieces that a byte-level BPE may merge within: the cl100k split rule, compiled, over Arrow text buffers.

What: BPE never merges across the boundaries of a split rule. The rule here is the one of cl100k (and Llama 3):

    (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\\r\\n\\p{L}\\p{N}]?\\p{L}+ | \\p{N}{1,3} | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*
    | \\s*[\\r\\n]+ | \\s+(?!\\S) | \\s+

that is: English contractions, words that take one leading space or mark with them, numbers in groups of three digits,
runs of marks with the line ends after them, line ends with the blanks before them, blanks up to the last one.
How: one pass over the UTF-8 bytes with a class (letter, number, white space, other) per code point; every piece goes
into one open-addressing hash table whose keys lie in one byte arena, so no Python object is made per piece.
Cost: about 60 MB/s per core; memory is that of the distinct pieces (some 100,000 in 25 MB of text), not of the text.
The limit: where words have no blanks between them (Chinese, Japanese, Thai) a clause is a piece, nearly every one is
distinct, and so the distinct pieces are as large as the text. When they pass DISTINCT_BYTES, the text is read again
and three quarters of its segments are counted, then three quarters of these, until the pieces fit; that takes about as
long as reading the text four times. A segment is SEGMENT_BYTES of a document; its hash says at which share it is left
out. A smaller share has no piece that a larger one lacks, so the share, and with it the tokenizer, follows from the set
of documents: not from their order or batches. Segments are left out, and not pieces, because that keeps what BPE looks
at: a frequent piece stays, and every pair keeps its share of all pairs. To keep short pieces first would learn the
pairs of short clauses; to drop rare ones, those of set phrases. Text that fits is counted whole.
Trap: Unicode versions differ between libraries. A code point that this Python does not know yet counts as "other";
that changes which pieces are learned from, never how text is encoded, so it cannot make ids differ.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pipeline_lib.compiled import kernel

CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The split rule as Hugging Face tokenizers and gigatoken both know it."""

DocumentBatch = tuple[np.ndarray, np.ndarray]
"""UTF-8 bytes of some documents, uint8 [n], and their boundaries, int64 [documents + 1]."""

DISTINCT_BYTES = 12_000_000
"""Most bytes of distinct pieces that train a tokenizer. Learning takes up to 40 times as much memory (some 480 MB; with
the libraries a process of 700 MB). 100 MB of Python sources have 3 MB of distinct pieces."""
SEGMENT_BYTES = 1024

OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3
_WHITE_SPACE = [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]
_WHITE_SPACE += [0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
_FIRST_TABLE_SLOTS = 1 << 16
_HIGHEST_HASH = np.uint64(2**64 - 1)
_FIRST_ARENA_BYTES = 1 << 20


@cache
def code_point_classes() -> np.ndarray:
    """Return the class of every code point, uint8 [0x110000]; takes about 0.2 s, once."""
    kinds = {"L": LETTER, "N": NUMBER}
    points = (kinds.get(unicodedata.category(chr(point))[0], OTHER) for point in range(0x110000))
    classes = np.fromiter(points, np.uint8, 0x110000)
    classes[_WHITE_SPACE] = SPACE
    return classes


@dataclass
class PretokenCounts:
    """Distinct pieces and how often each occurs.

    arena: uint8, the bytes of all pieces, one after the other; starts: int64 [pieces + 1] into it; counts: int64
    [pieces]; reductions: 0.75**reductions is the share of segments that was counted.
    """

    arena: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    reductions: int = 0

    @property
    def share(self) -> float:
        """Share of the text's segments that was counted."""
        return 0.75**self.reductions

    def limit_to_json(self) -> dict[str, Any]:
        """Return what was counted and by which rule, when it was not everything; else nothing."""
        if not self.reductions:
            return {}
        return {
            "rule": f"segments of {SEGMENT_BYTES} bytes by their hash (docs/packed_cache.md): all distinct pieces"
            " take more memory than training has",
            "segments": self.share,
            "bytes": int(self.counts @ np.diff(self.starts)),
            "distinct_pieces": len(self.counts),
            "distinct_bytes": len(self.arena),
        }


def count_pieces(batches: Iterable[DocumentBatch], limit: int = DISTINCT_BYTES) -> PretokenCounts:
    """Count the pieces of all batches, or of the largest share of segments whose distinct pieces take `limit` bytes.

    `batches` is read again for each smaller share, so it must be a collection, not an iterator.
    """
    if isinstance(batches, Iterator):
        raise TypeError("batches are read more than once; an iterator can be read once")
    counter = PretokenCounter(limit)
    reductions = 0
    while not all(counter.add(data, offsets) for data, offsets in batches):
        reductions += 1
        counter = PretokenCounter(limit, reductions)
    return counter.counts()


class PretokenCounter:
    """A growing table of pieces; feed it batches of documents, then take `counts()`."""

    def __init__(self, limit: int = DISTINCT_BYTES, reductions: int = 0) -> None:
        self._limit = limit
        self._reductions = reductions
        self._highest = np.uint64(max(1, 3**reductions << 64 >> 2 * reductions) - 1)
        self._classes = code_point_classes()
        self._arena = np.empty(min(_FIRST_ARENA_BYTES, limit), np.uint8)
        self._starts = np.zeros(_FIRST_TABLE_SLOTS // 2 + 1, np.int64)
        self._counts = np.zeros(_FIRST_TABLE_SLOTS // 2, np.int64)
        self._hashes = np.zeros(_FIRST_TABLE_SLOTS // 2, np.uint64)
        self._slots = np.full(_FIRST_TABLE_SLOTS, -1, np.int32)
        self._pieces = 0

    def add(self, data: np.ndarray, offsets: np.ndarray) -> bool:
        """Count the pieces of documents given as UTF-8 bytes uint8 [n] and boundaries int64 [documents + 1].

        Returns False when the distinct pieces pass the limit: the counts are of no use then.
        """
        document, position = 0, np.int64(offsets[0])
        while document < len(offsets) - 1:
            document, position, self._pieces = _count(
                data,
                offsets,
                document,
                position,
                self._highest,
                self._classes,
                self._arena,
                self._starts,
                self._counts,
                self._hashes,
                self._slots,
                self._pieces,
            )
            if document < len(offsets) - 1 and not self._grow(needed=int(offsets[document + 1] - position)):
                return False
        return True

    def _grow(self, needed: int) -> bool:
        """Make room: the table for twice the pieces, or the arena for a piece as long as the rest of a document.

        Returns False when the arena has reached the limit.
        """
        if self._pieces == len(self._counts):
            self._starts = np.concatenate([self._starts, np.zeros_like(self._counts)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
            self._slots = np.full(2 * len(self._slots), -1, np.int32)
            _fill_slots(self._slots, self._hashes, self._pieces)
            return True
        if len(self._arena) == self._limit:
            return False
        used = int(self._starts[self._pieces])
        arena = np.empty(min(self._limit, max(2 * len(self._arena), used + needed)), np.uint8)
        arena[:used] = self._arena[:used]
        self._arena = arena
        return True

    def counts(self) -> PretokenCounts:
        """Return copies of what has been counted so far, in order of first appearance."""
        used = self._starts[self._pieces]
        return PretokenCounts(
            self._arena[:used].copy(),
            self._starts[: self._pieces + 1].copy(),
            self._counts[: self._pieces].copy(),
            self._reductions,
        )


@kernel
def _code_point(data, position, end):
    """Decode one code point of valid UTF-8 and return (code point, next position)."""
    first = np.int64(data[position])
    if first < 0x80 or position + 1 >= end:
        return first, position + 1
    if first < 0xE0 or position + 2 >= end:
        return ((first & 0x1F) << 6) | (np.int64(data[position + 1]) & 0x3F), position + 2
    middle = ((np.int64(data[position + 1]) & 0x3F) << 6) | (np.int64(data[position + 2]) & 0x3F)
    if first < 0xF0 or position + 3 >= end:
        return ((first & 0x0F) << 12) | middle, position + 3
    return ((first & 0x07) << 18) | (middle << 6) | (np.int64(data[position + 3]) & 0x3F), position + 4


@kernel
def _skip(data, position, end, classes, wanted, most):
    """Return the position after at most `most` code points of the class `wanted`."""
    taken = 0
    while position < end and taken < most:
        byte = data[position]
        following = position + 1
        kind = classes[byte]
        if byte >= 0x80:
            point, following = _code_point(data, position, end)
            kind = classes[point]
        if kind != wanted:
            break
        position = following
        taken += 1
    return position


@kernel
def _contraction_end(data, position, end):
    """Return where 's 't 'm 'd 're 've 'll ends when one starts at `position`, else `position`.

    Trap: without regard to case, the long s (U+017F, bytes C5 BF) is an s too.
    """
    if data[position] != 39 or position + 1 >= end:
        return position
    first = data[position + 1] | 32
    if position + 2 < end and data[position + 1] == 0xC5 and data[position + 2] == 0xBF:
        return position + 3
    if first == 115 or first == 116 or first == 109 or first == 100:
        return position + 2
    if position + 2 < end:
        second = data[position + 2] | 32
        if (first == 114 or first == 118) and second == 101:
            return position + 3
        if first == 108 and second == 108:
            return position + 3
    return position


@kernel
def _white_space_end(data, position, end, classes):
    """Return the end of a piece that starts with white space: up to the last line end, else all but the last blank."""
    last_line_end = last_start = run = position
    while run < end:
        point, following = _code_point(data, run, end)
        if classes[point] != SPACE:
            break
        last_start = run
        run = following
        if point == 10 or point == 13:
            last_line_end = run
    if last_line_end > position:
        return last_line_end
    if run == end or last_start == position:
        return run
    return last_start


@kernel
def piece_end(data, position, end, classes):
    """Return the end of the piece of the split rule that starts at `position` of a document that ends at `end`."""
    contraction = _contraction_end(data, position, end)
    if contraction > position:
        return contraction
    point, following = _code_point(data, position, end)
    kind = classes[point]
    if kind == LETTER:
        return _skip(data, following, end, classes, LETTER, end)
    if kind == NUMBER:
        return _skip(data, following, end, classes, NUMBER, 2)
    next_kind = SPACE
    if following < end:
        next_point, _ = _code_point(data, following, end)
        next_kind = classes[next_point]
    if point != 10 and point != 13 and next_kind == LETTER and following < end:
        return _skip(data, following, end, classes, LETTER, end)
    if kind == OTHER or (point == 32 and next_kind == OTHER and following < end):
        marks = _skip(data, following, end, classes, OTHER, end)
        while marks < end and (data[marks] == 10 or data[marks] == 13):
            marks += 1
        return marks
    return _white_space_end(data, position, end, classes)


@kernel
def split_document(data, classes):
    """Return the ends of all pieces of one document, int64; the oracle of the tests looks at these."""
    ends = np.empty(len(data), np.int64)
    pieces = 0
    position = 0
    while position < len(data):
        position = piece_end(data, position, len(data), classes)
        ends[pieces] = position
        pieces += 1
    return ends[:pieces]


@kernel
def _hash(data, start, end):
    """FNV-1a with a final mix, so that the low bits are good enough for a table."""
    value = np.uint64(0xCBF29CE484222325)
    for i in range(start, end):
        value = (value ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    value ^= value >> np.uint64(32)
    value *= np.uint64(0x9E3779B97F4A7C15)
    return value ^ (value >> np.uint64(29))


@kernel
def _fill_slots(slots, hashes, pieces):
    mask = np.uint64(len(slots) - 1)
    for piece in range(pieces):
        slot = hashes[piece] & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = piece


@kernel
def _find(data, start, end, value, arena, starts, hashes, slots):
    """Return (slot, piece) where these bytes are or belong; the piece is -1 when they are new."""
    mask = np.uint64(len(slots) - 1)
    slot = value & mask
    while slots[slot] >= 0:
        piece = slots[slot]
        if hashes[piece] == value and starts[piece + 1] - starts[piece] == end - start:
            base = starts[piece]
            same = True
            for i in range(end - start):
                if arena[base + i] != data[start + i]:
                    same = False
                    break
            if same:
                return slot, piece
        slot = (slot + np.uint64(1)) & mask
    return slot, -1


@kernel
def _count(data, offsets, document, position, highest, classes, arena, starts, counts, hashes, slots, pieces):
    """Count until the end or until a table is full; return where it stopped as (document, position, pieces).

    highest: hash of a segment that is counted at most; all of them are when it is the highest of all.
    """
    while document < len(offsets) - 1:
        first, end = offsets[document], offsets[document + 1]
        segment_end, counted = first, True
        while position < end:
            stop = piece_end(data, position, end, classes)
            if highest < _HIGHEST_HASH:
                if position >= segment_end:
                    segment = first + (position - first) // SEGMENT_BYTES * SEGMENT_BYTES
                    segment_end = segment + SEGMENT_BYTES
                    counted = _hash(data, segment, min(segment_end, end)) <= highest
                if not counted or stop - position > SEGMENT_BYTES:  # no word or clause is so long
                    position = stop
                    continue
            value = _hash(data, position, stop)
            slot, piece = _find(data, position, stop, value, arena, starts, hashes, slots)
            if piece < 0:
                used = starts[pieces]
                if pieces == len(counts) or used + stop - position > len(arena):
                    return document, position, pieces
                arena[used : used + stop - position] = data[position:stop]
                starts[pieces + 1] = used + stop - position
                hashes[pieces] = value
                slots[slot] = pieces
                piece = pieces
                pieces += 1
            counts[piece] += 1
            position = stop
        document += 1
    return document, position, pieces
