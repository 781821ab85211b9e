"""Token ids as one, two or three bytes each, so that frequent tokens are short and LZ4 still sees repeated phrases.

What: LZ4 alone leaves 16-bit ids of web text nearly as they are, because it has no entropy coder. Here the most
frequent ids of a chunk take one byte, the next ones two, the rest three. The first byte says how many: 0..S-1 is an id
of one byte, S..T-1 the first of two, T..255 the first of three. S and T are those that make this chunk smallest.
How: a chunk stores the width of every id (uint8, mostly runs, a few hundred bytes compressed) and nothing else; ids of
one width are numbered in ascending order, which both sides can compute. Phrases stay byte sequences, so LZ4 after it
finds them, which it could not do behind a bit-wise entropy coder.
Cost: 1.58 bytes per token on web text with 32,768 ids before LZ4. Decoding takes 0.7 nanoseconds per token: the
length of a token must be known before the next one begins, so a chunk is cut into lanes of 2,048 tokens, whose starts
are stored, and six lanes are decoded at once to keep the processor busy while it waits for each. Where the next token
begins is computed with a comparison, because a table's answer would be waited for as long as the code itself.
Traps: numba checks signed indices for being negative; with unsigned ones the same loop is twice as fast. A branch for
three bytes costs a third of the time even where it is never taken, so codes without them have a kernel of their own,
and a chunk does without them where that costs little. Lanes write 4 KiB apart, which collides in the cache from eight
on.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba.extending import overload

from pipeline_lib.compiled import kernel

LANE = 2048
"""Tokens per lane."""
SLACK = 2
"""Bytes that a decoder may read past the last token."""
SHORT_CODE_COST = 1.02
"""A chunk without codes of three bytes may be so many times as large as one with them: it is decoded faster."""
_ONE, _TWO, _THREE, _FOUR, _FIVE, _SIX, _EIGHT = (np.uint64(number) for number in (1, 2, 3, 4, 5, 6, 8))
_LANE = np.uint64(LANE)


@dataclass(frozen=True)
class TokenCode:
    """A code for ids 0 .. vocabulary-1; width: uint8 [vocabulary], bytes that each id takes (1, 2 or 3)."""

    width: np.ndarray

    @property
    def bounds(self) -> tuple[int, int]:
        """Return (S, T): first bytes below S stand alone, those from T on have two bytes after them."""
        narrow = int((self.width == 1).sum())
        middle = int((self.width == 2).sum())
        return narrow, narrow + -(-middle // 256)

    def check(self) -> None:
        """Raise ValueError unless the widths leave every id a code."""
        three = int((self.width == 3).sum())
        if len(self.width) and not 1 <= int(self.width.min()) <= int(self.width.max()) <= 3:
            raise ValueError("a width is not 1, 2 or 3")
        if self.bounds[1] + -(-three // 65536) > 256:
            raise ValueError("more ids than codes")

    def encode(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (code uint8 [bytes], where each lane begins in it, int64 [lanes + 1])."""
        lanes = np.zeros(-(-len(tokens) // LANE) + 1, np.int64)
        out = np.empty(3 * len(tokens) + SLACK, np.uint8)
        _encode(tokens, self._codes, out, lanes)
        return out[: int(lanes[-1])], lanes

    def decoder(self, kind: np.dtype) -> "TokenDecoder":
        """Return what decodes to ids of that integer type."""
        if (self.width == 3).any():
            return TokenDecoder(self._tables(kind))
        return TokenDecoder(self._short_tables(kind))

    @cached_property
    def _codes(self) -> np.ndarray:
        """Per id, uint32: the three bytes to write, unused ones 0, from the lowest eight bits up; then the width."""
        ids = np.argsort(self.width, kind="stable")
        narrow, wide = self.bounds
        middle = int((self.width == 2).sum())
        codes = np.empty(len(ids), np.uint32)
        codes[ids[:narrow]] = np.arange(narrow)
        of_two = np.arange(middle)
        codes[ids[narrow : narrow + middle]] = narrow + (of_two >> 8) | (of_two & 255) << 8
        of_three = np.arange(len(ids) - narrow - middle)
        codes[ids[narrow + middle :]] = (
            wide + (of_three >> 16) | (of_three >> 8 & 255) << 8 | (of_three & 255) << 16
        )
        return codes | self.width.astype(np.uint32) << 24

    def _tables(self, kind: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each first byte: where its ids begin, and how far the two bytes behind it are shifted down."""
        narrow, wide = self.bounds
        first = np.arange(256)
        middle = narrow + int((self.width == 2).sum())
        base = np.where(first < narrow, first, narrow + ((first - narrow) << 8))
        base = np.where(first < wide, base, middle + ((first - wide) << 16)).astype(np.uint32)
        shift = np.where(first < narrow, 16, np.where(first < wide, 8, 0)).astype(np.uint8)
        ids = np.zeros(int(base.max()) + (1 << 16), kind)  # so that no damaged code can point outside
        ids[: len(self.width)] = np.argsort(self.width, kind="stable")
        return ids, base, shift

    def _short_tables(self, kind: np.dtype) -> tuple[np.ndarray, np.uint16]:
        """For each two bytes, the first one lowest: the id they begin with; and S, the first byte of the wider ids.

        Only for a code without ids of three bytes.
        """
        narrow, _ = self.bounds
        ids = np.zeros(narrow + (1 << 16), kind)  # so that no damaged code can point outside
        ids[: len(self.width)] = np.argsort(self.width, kind="stable")
        begun = np.empty((256, 256), kind)  # [second byte, first byte]
        begun[:, :narrow] = ids[:narrow]
        begun[:, narrow:] = ids[narrow : narrow + ((256 - narrow) << 8)].reshape(256 - narrow, 256).T
        return begun.reshape(-1), np.uint16(narrow)


@dataclass(frozen=True)
class TokenDecoder:
    """The tables of a code: three arrays, or an array and a number if no id takes three bytes."""

    tables: tuple[np.ndarray, np.ndarray, np.ndarray] | tuple[np.ndarray, np.uint16]

    def decode(self, code: np.ndarray, lanes: np.ndarray, tokens: np.ndarray) -> None:
        """Decode into `tokens` [n]; `code` has SLACK bytes after the last lane; `lanes` says where each one begins."""
        _decode(code, lanes, self.tables, tokens)


def best_code(tokens: np.ndarray, vocabulary: int) -> TokenCode:
    """Return the code of `vocabulary` ids under which these tokens take the fewest bytes; ties favour fewer widths.

    One without ids of three bytes is taken when it needs at most SHORT_CODE_COST times as many.
    """
    counts = np.zeros(vocabulary, np.int64)
    _count(tokens, counts)
    order = np.argsort(-counts, kind="stable")
    reached = np.concatenate([[0], np.cumsum(counts[order])])
    best = None
    for three in range(257):
        narrow = np.arange(257 - three)
        two = np.minimum(narrow + 256 * (256 - three - narrow), vocabulary)
        fits = two + 65536 * three >= vocabulary
        ones = np.minimum(narrow, vocabulary)
        cost = np.where(fits, -reached[ones] - reached[two], 1)
        place = int(np.argmin(cost))
        size = 3 * len(tokens) + int(cost[place])
        if fits.any() and (best is None or size < best[0]):
            best = (size * (1 if three else 1 / SHORT_CODE_COST), int(ones[place]), int(two[place]))
        if 65536 * three >= vocabulary:
            break
    if best is None:
        raise ValueError(f"{vocabulary} ids are too many for three bytes")
    width = np.full(vocabulary, 3, np.uint8)
    width[order[: best[2]]] = 2
    width[order[: best[1]]] = 1
    return TokenCode(width)


@kernel
def _count(tokens, counts):
    for i in range(len(tokens)):
        counts[np.uint64(tokens[i])] += 1


@kernel
def _encode(tokens, codes, out, lanes):
    """Write every code as three bytes, of which the next one overwrites those that do not belong: no branch."""
    place = np.uint64(0)
    for lane in range(len(lanes) - 1):
        lanes[lane] = place
        for i in range(lane * LANE, min(lane * LANE + LANE, len(tokens))):
            code = codes[np.uint64(tokens[np.uint64(i)])]
            out[place] = code & 255
            out[place + _ONE] = (code >> 8) & 255
            out[place + _TWO] = (code >> 16) & 255
            place += np.uint64(code >> 24)
    lanes[len(lanes) - 1] = place


def _next_token(code, place, tables):
    """Return (the id that begins at `place`, where the next one begins)."""
    return _reader_for(tables)(code, place, tables)


def _reader_for(tables):
    """Return what reads a token: of a code with ids of three bytes (three tables), or without (a table and S)."""

    def any_width(code, place, tables):
        ids, base, shift = tables
        first = code[place]
        drop = np.uint64(shift[first])
        behind = (np.uint64(code[place + _ONE]) << _EIGHT) | np.uint64(code[place + _TWO])
        return ids[np.uint64(base[first]) + (behind >> drop)], place + _THREE - (drop >> _THREE)

    def one_or_two(code, place, tables):
        begun, wider = tables
        first = code[place]
        token = begun[np.uint64(first) | (np.uint64(code[place + _ONE]) << _EIGHT)]
        return token, place + _ONE + np.uint64(first >= wider)

    return any_width if len(tables) == 3 else one_or_two


overload(_next_token, inline="always")(lambda code, place, tables: _reader_for(tables))


@kernel
def _decode(code, lanes, tables, tokens):
    """Decode six lanes at once; of those that are left four, two, and the last one."""
    lane, place, count = np.uint64(0), np.uint64(0), np.uint64(len(tokens))
    while place + _SIX * _LANE <= count:
        a, b, c = np.uint64(lanes[lane]), np.uint64(lanes[lane + _ONE]), np.uint64(lanes[lane + _TWO])
        d, e, f = np.uint64(lanes[lane + _THREE]), np.uint64(lanes[lane + _FOUR]), np.uint64(lanes[lane + _FIVE])
        for i in range(_LANE):
            here = place + np.uint64(i)
            tokens[here], a = _next_token(code, a, tables)
            tokens[here + _LANE], b = _next_token(code, b, tables)
            tokens[here + _TWO * _LANE], c = _next_token(code, c, tables)
            tokens[here + _THREE * _LANE], d = _next_token(code, d, tables)
            tokens[here + _FOUR * _LANE], e = _next_token(code, e, tables)
            tokens[here + _FIVE * _LANE], f = _next_token(code, f, tables)
        place += _SIX * _LANE
        lane += _SIX
    if place + _FOUR * _LANE <= count:  # a whole LZ4 block
        a, b = np.uint64(lanes[lane]), np.uint64(lanes[lane + _ONE])
        c, d = np.uint64(lanes[lane + _TWO]), np.uint64(lanes[lane + _THREE])
        for i in range(_LANE):
            here = place + np.uint64(i)
            tokens[here], a = _next_token(code, a, tables)
            tokens[here + _LANE], b = _next_token(code, b, tables)
            tokens[here + _TWO * _LANE], c = _next_token(code, c, tables)
            tokens[here + _THREE * _LANE], d = _next_token(code, d, tables)
        place += _FOUR * _LANE
        lane += _FOUR
    while place + _LANE < count:  # two at once, of which the second may be the short last one
        a, b = np.uint64(lanes[lane]), np.uint64(lanes[lane + _ONE])
        both = min(count - place - _LANE, _LANE)
        for i in range(both):
            here = place + np.uint64(i)
            tokens[here], a = _next_token(code, a, tables)
            tokens[here + _LANE], b = _next_token(code, b, tables)
        for i in range(both, _LANE):
            tokens[place + np.uint64(i)], a = _next_token(code, a, tables)
        place += _LANE + both
        lane += _TWO
    if place < count:
        a = np.uint64(lanes[lane])
        while place < count:
            tokens[place], a = _next_token(code, a, tables)
            place += _ONE
