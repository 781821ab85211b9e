"""The one normal form of a text, made once and used by everything after it.

What: UTF-8 in, UTF-8 out. Every code point is folded (unicode_fold.py: compatibility forms, case), format controls and
variation selectors are dropped, each run of white space and control characters becomes one space, the ends are
trimmed. Punctuation stays: "1-1" and "1+1" are different texts, although they have the same words.
How: bytes below 128 are folded 64 at a time (byte_blocks.py) and written whole; a doubled space ends such a step.
Others are decoded and looked up.
Cost: one pass; on the machine it was written on 3 GB/s per core of English, 200 to 350 MB/s of Chinese or Russian.
Traps: a byte that is not UTF-8 becomes U+FFFD, one per byte, and never reads past its document; one code point can
grow (U+FDFA: 3 bytes to 33), hence MAX_GROWTH.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from pipeline_lib.compiled import kernel

from .byte_blocks import BLOCK, fold_block, trailing_zeros
from .unicode_fold import DROPPED, EXPANDS, UNCHANGED, UnicodeTables, load_tables

MAX_GROWTH = 11
REPLACEMENT = 0xFFFD
SPACE_BYTE = 0x20


class TextBatch(NamedTuple):
    """Documents laid end to end: document i is `data[starts[i]:starts[i + 1]]`; more bytes may follow the last one."""

    data: np.ndarray  # uint8[bytes], UTF-8
    starts: np.ndarray  # int64[documents + 1]

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.starts) - 1


@cache
def tables() -> UnicodeTables:
    """Return the frozen Unicode tables, read once per process."""
    return load_tables()


@cache
def ascii_fold() -> np.ndarray:
    """Return the fold of the 128 ASCII bytes: lower case, and a space for white space and controls."""
    table = np.arange(128, dtype=np.uint8)
    table[ord("A") : ord("Z") + 1] += 32
    table[:33] = SPACE_BYTE
    table[127] = SPACE_BYTE
    return table


@kernel(inline="always")
def decode(data, position, end):
    """Return (code point, bytes read) at `position`; what is not UTF-8 is (U+FFFD, 1)."""
    lead = np.int64(data[position])
    if lead < 0xC2 or lead > 0xF4:
        return (lead, 1) if lead < 0x80 else (REPLACEMENT, 1)
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if position + length > end:
        return REPLACEMENT, 1
    code_point = lead & (0x7F >> length)
    for step in range(1, length):
        byte = np.int64(data[position + step])
        if byte & 0xC0 != 0x80:
            return REPLACEMENT, 1
        code_point = code_point << 6 | byte & 0x3F
    overlong = (length == 3 and code_point < 0x800) or (length == 4 and code_point < 0x10000)
    if overlong or 0xD800 <= code_point < 0xE000 or code_point > 0x10FFFF:
        return REPLACEMENT, 1
    return code_point, length


@kernel(inline="always")
def encode(code_point, out, position):
    """Write one code point as UTF-8 and return the position after it."""
    if code_point < 0x80:
        out[position] = code_point
        return position + 1
    if code_point < 0x800:
        out[position] = 0xC0 | code_point >> 6
        out[position + 1] = 0x80 | code_point & 0x3F
        return position + 2
    if code_point < 0x10000:
        out[position] = 0xE0 | code_point >> 12
        out[position + 1] = 0x80 | code_point >> 6 & 0x3F
        out[position + 2] = 0x80 | code_point & 0x3F
        return position + 3
    out[position] = 0xF0 | code_point >> 18
    out[position + 1] = 0x80 | code_point >> 12 & 0x3F
    out[position + 2] = 0x80 | code_point >> 6 & 0x3F
    out[position + 3] = 0x80 | code_point & 0x3F
    return position + 4


@kernel
def _fold_code_point(code_point, page, fold, expansion, out, position, after_space):
    """Write the fold of one code point above ASCII; returns (position, whether the last byte is a space)."""
    entry = np.int64(fold[np.int64(page[code_point >> 8]) << 8 | code_point & 0xFF])
    if entry == DROPPED:
        return position, after_space
    if entry == UNCHANGED:
        return encode(code_point, out, position), False
    first, count = np.int64(-1), np.int64(1)
    if entry >= EXPANDS:
        first, count = (entry & (EXPANDS - 1)) >> 5, entry & 31
    for index in range(count):
        target = entry if first < 0 else np.int64(expansion[first + index])
        if target != SPACE_BYTE:
            position = encode(target, out, position)
            after_space = False
        elif not after_space:
            out[position] = SPACE_BYTE
            position += 1
            after_space = True
    return position, after_space


@kernel
def _fold_ascii(data, here, end, out, position, after_space):
    """Fold bytes below 128 up to `end`, at most BLOCK; returns (bytes read, position, whether the last is a space).

    Needs BLOCK readable bytes at `here` and BLOCK writable ones at `position`; stops at a space that follows a space.
    """
    spaces, wide = fold_block(data, here, out, position)
    count = min(np.int64(BLOCK), end - here, trailing_zeros(wide))
    doubled = spaces & (spaces << np.uint64(1) | np.uint64(after_space))
    kept = min(count, trailing_zeros(doubled))
    if kept == count:
        return count, position + count, bool(spaces >> np.uint64(count - 1) & np.uint64(1)) if count else after_space
    run = trailing_zeros(~(spaces >> np.uint64(kept)))  # the rest of the run of spaces
    return min(kept + run, count), position + kept, True


@kernel
def _normalise(data, starts, ascii_table, page, fold, expansion, out, out_starts):
    position = np.int64(0)
    last_block = np.int64(len(data)) - BLOCK
    for document in range(len(starts) - 1):
        here, end = starts[document], starts[document + 1]
        begin = position
        out_starts[document] = begin
        after_space = True
        while here < end:
            byte = data[here]
            if byte >= 0x80:
                code_point, length = decode(data, here, end)
                here += length
                position, after_space = _fold_code_point(code_point, page, fold, expansion, out, position, after_space)
            elif here <= last_block:
                read, position, after_space = _fold_ascii(data, here, end, out, position, after_space)
                here += read
            else:
                folded = ascii_table[byte]
                is_space = folded == SPACE_BYTE
                out[position] = folded
                position += 0 if is_space and after_space else 1
                after_space = is_space
                here += 1
        if position > begin and out[position - 1] == SPACE_BYTE:
            position -= 1
    out_starts[len(starts) - 1] = position
    return position


def normalise(batch: TextBatch) -> TextBatch:
    """Return the normal form of every document of `batch`, in the same order, with BLOCK spare bytes at the end."""
    size = int(batch.starts[-1] - batch.starts[0])
    view = batch.data[batch.starts[0] : batch.starts[-1]]
    growth = MAX_GROWTH if size and int(view.max()) >= 0x80 else 1
    # The spare bytes take the rest of a block, and the space that is about to be collapsed. Untouched pages are free.
    out = np.empty(size * growth + 2 * BLOCK, np.uint8)
    out_starts = np.empty(len(batch.starts), np.int64)
    frozen = tables()
    used = _normalise(
        batch.data, batch.starts, ascii_fold(), frozen.page, frozen.fold, frozen.expansion, out, out_starts
    )
    return TextBatch(out[: used + BLOCK], out_starts)


def batch_of(texts: list[str]) -> TextBatch:
    """Lay Python strings end to end. A lone surrogate (not encodable) is kept as its bytes and folds to U+FFFD."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    starts = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=starts[1:])
    return TextBatch(np.frombuffer(b"".join(encoded), np.uint8), starts)
