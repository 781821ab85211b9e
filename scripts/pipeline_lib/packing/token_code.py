"""Token ids as one, two or three bytes each, so that frequent tokens are short and LZ4 still sees repeated phrases.

What: LZ4 alone leaves 16-bit ids of web text nearly as they are, because it has no entropy coder. Here the most
frequent ids of a chunk take one byte, the next ones two, the rest three. The first byte says how many: 0..S-1 is an id
of one byte, S..T-1 the first of two, T..255 the first of three. S and T are those that make this chunk smallest.
How: a chunk stores the width of every id (uint8, mostly runs, a few hundred bytes compressed) and nothing else; ids of
one width are numbered in ascending order, which both sides can compute. Phrases stay byte sequences, so LZ4 after it
finds them, which it could not do behind a bit-wise entropy coder.
Cost: 1.58 bytes per token on web text with 32,768 ids before LZ4. Decoding takes under a nanosecond per token: the
length of a token must be known before the next one begins, so a chunk is cut into lanes of 2,048 tokens, whose starts
are stored, and four lanes are decoded at once to keep the processor busy while it waits for each.
Trap: numba checks signed indices for being negative; with unsigned ones the same loop is twice as fast.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline_lib.compiled import kernel

LANE = 2048
"""Tokens per lane."""
SLACK = 2
"""Bytes that a decoder may read past the last token."""
_ONE, _TWO, _THREE, _EIGHT = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(8)
_LANE, _BUNDLE = np.uint64(LANE), np.uint64(4 * LANE)


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
        return TokenDecoder(*self._tables(kind))

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


@dataclass(frozen=True)
class TokenDecoder:
    """The tables of a code: ids by number, and per first byte where its numbers begin and how far to shift down."""

    ids: np.ndarray
    base: np.ndarray
    shift: np.ndarray

    def decode(self, code: np.ndarray, lanes: np.ndarray, tokens: np.ndarray) -> None:
        """Decode into `tokens` [n]; `code` has SLACK bytes after the last lane; `lanes` says where each one begins."""
        _decode(code, lanes, self.ids, self.base, self.shift, tokens)


def best_code(tokens: np.ndarray, vocabulary: int) -> TokenCode:
    """Return the code of `vocabulary` ids under which these tokens take the fewest bytes; ties favour fewer widths."""
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
        if fits.any() and (best is None or cost[place] < best[0]):
            best = (int(cost[place]), int(ones[place]), int(two[place]))
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


@kernel(inline="always")
def _next_token(code, place, ids, base, shift):
    first = code[place]
    drop = np.uint64(shift[first])
    behind = (np.uint64(code[place + _ONE]) << _EIGHT) | np.uint64(code[place + _TWO])
    return ids[np.uint64(base[first]) + (behind >> drop)], place + _THREE - (drop >> _THREE)


@kernel
def _decode(code, lanes, ids, base, shift, tokens):
    count = np.uint64(len(tokens))
    bundles = count // _BUNDLE
    for bundle in range(bundles):
        lane = np.uint64(4) * np.uint64(bundle)
        a, b = np.uint64(lanes[lane]), np.uint64(lanes[lane + _ONE])
        c, d = np.uint64(lanes[lane + _TWO]), np.uint64(lanes[lane + _THREE])
        first = lane * _LANE
        for i in range(_LANE):
            place = first + np.uint64(i)
            tokens[place], a = _next_token(code, a, ids, base, shift)
            tokens[place + _LANE], b = _next_token(code, b, ids, base, shift)
            tokens[place + _TWO * _LANE], c = _next_token(code, c, ids, base, shift)
            tokens[place + _THREE * _LANE], d = _next_token(code, d, ids, base, shift)
    lane, place = np.uint64(4) * bundles, bundles * _BUNDLE
    while place + _LANE < count:  # two at once, of which the second may be the short last one
        a, b = np.uint64(lanes[lane]), np.uint64(lanes[lane + _ONE])
        both = min(count - place - _LANE, _LANE)
        for i in range(both):
            here = place + np.uint64(i)
            tokens[here], a = _next_token(code, a, ids, base, shift)
            tokens[here + _LANE], b = _next_token(code, b, ids, base, shift)
        for i in range(both, _LANE):
            tokens[place + np.uint64(i)], a = _next_token(code, a, ids, base, shift)
        place += _LANE + both
        lane += _TWO
    if place < count:
        a = np.uint64(lanes[lane])
        while place < count:
            tokens[place], a = _next_token(code, a, ids, base, shift)
            place += _ONE
