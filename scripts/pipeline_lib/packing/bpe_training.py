"""Train byte-level BPE merges from counted pieces, with the result that Hugging Face's BpeTrainer gives.

What: start from bytes; again and again join the pair of neighbouring tokens that occurs most often into a new token.
How: all pieces lie in one array of positions. Each pair has a count and a chain of the positions where it is; a
position is in one chain at a time. A merge walks one chain, and moves the positions at its neighbours to the chains of
their new pairs. The next best pair comes from a heap of the most frequent ones, with lazy entries: a popped entry whose
count is out of date is put back with the true one. Ties go to the pair with the smaller ids, so the result depends on
nothing else.
Cost: about a second for 8,192 tokens from 25 MB of text. Memory per byte of distinct piece: 16 bytes for the positions
and 10 to 25 for the table of pairs, which is rebuilt without those that occur no more; hence the limit on distinct
pieces in pretoken_counts.py.
Traps: "aaa" holds the pair (a, a) twice but can merge once, hence chains are walked left to right. Two merges can spell
the same bytes ("ab"+"c", "a"+"bc"): they share one id, so a vocabulary may need more merges than it has tokens.
Why not gigatoken's own trainer: it splits by the GPT-2 rule only, and a vocabulary learned under one rule and applied
under another spends ids on pieces that never occur; benchmarks/packing_speed.py measures it.
Paper: Sennrich et al. 2016, arXiv 1508.07909.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from pipeline_lib.compiled import kernel

from .pretoken_counts import PretokenCounts

_EMPTY = -1
_FIELD = 32
_LOW = (1 << _FIELD) - 1
_FIRST_PAIR_SLOTS = 1 << 17  # more than there are pairs of bytes
_FIRST_TOKENS = 1 << 12
_HEAP_PAIRS = 1 << 15  # an entry takes some 130 bytes; a refill looks at the whole table
_IN_NO_CHAIN = -2


@dataclass
class Merges:
    """What was learned.

    tokens: the bytes of every token in id order, the 256 bytes first; pairs: the merges in order, as ids into `tokens`.
    """

    tokens: list[bytes]
    pairs: list[tuple[int, int]]


def byte_order() -> list[int]:
    """Return the 256 byte values in id order: printable ones first, as in GPT-2's byte alphabet and its descendants."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [value for value in range(256) if value not in set(printable)]


def train_merges(counted: PretokenCounts, size: int, min_pair_count: int) -> Merges:
    """Learn merges until there are `size` tokens (the 256 bytes included) or no pair occurs `min_pair_count` times.

    The caller sees from `len(tokens)` which of the two it was.
    """
    tokens = [bytes([value]) for value in byte_order()]
    ids = {token: identity for identity, token in enumerate(tokens)}
    state = _State(counted)
    heap: list[tuple[int, int]] = []
    last = (0, 0)  # every pair whose (-count, pair) is not after `last` is in the heap
    order: dict[tuple[int, int], int] = {}
    merges = 0
    while len(tokens) < size:
        if not heap:
            heap = state.most_frequent(min_pair_count)
            if not heap:
                break
            last = heap[-1]
        promised, key = heapq.heappop(heap)
        count = state.count(key)
        if count != -promised:
            if count >= min_pair_count and (-count, key) <= last:
                heapq.heappush(heap, (-count, key))
            continue
        a, b = key >> _FIELD, key & _LOW
        spelled = tokens[a] + tokens[b]
        new = ids.setdefault(spelled, len(tokens))
        if new == len(tokens):
            tokens.append(spelled)
        order[a, b] = merges  # a pair that comes back is ranked by its last merge, as in the peer
        merges += 1
        for entry in state.merge(key, new, len(spelled), merges, max(min_pair_count, -last[0])):
            if entry <= last:
                heapq.heappush(heap, entry)
    return Merges(tokens, sorted(order, key=order.__getitem__))


class _State:
    """All positions, the pair table and the chains through the positions of each pair.

    A position is the first byte of a token. symbols: its id; at the last byte of a token of n > 1 bytes -n, so that the
    token before a position is found; other bytes inside a token hold anything below 0. words: piece of each position.
    following, preceding: the chain of the position's pair, -1 at its ends.
    """

    def __init__(self, counted: PretokenCounts):
        rank = np.empty(256, np.int32)
        rank[byte_order()] = np.arange(256, dtype=np.int32)
        self.symbols = rank[counted.arena]
        self.words = np.repeat(np.arange(len(counted.counts), dtype=np.int32), np.diff(counted.starts))
        self.weights = counted.counts
        self.following = np.empty(len(self.symbols), np.int32)
        self.preceding = np.empty(len(self.symbols), np.int32)
        self.widths = np.ones(_FIRST_TOKENS, np.int32)
        self._new_table(_FIRST_PAIR_SLOTS)
        self.pairs = _seed_pairs(
            self.symbols,
            self.words,
            self.weights,
            self.following,
            self.preceding,
            self.keys,
            self.counts,
            self.heads,
            self.lengths,
        )

    def most_frequent(self, min_pair_count: int) -> list[tuple[int, int]]:
        """Return (-count, pair) of the next pairs to look at, sorted, at most _HEAP_PAIRS of them.

        They are the first of all pairs in this order, so a heap of them is as good as a heap of all, and small.
        """
        slots = np.flatnonzero(self.counts >= min_pair_count)
        if len(slots) > _HEAP_PAIRS:
            counts = self.counts[slots]
            least = np.partition(counts, len(counts) - _HEAP_PAIRS)[len(counts) - _HEAP_PAIRS]
            above, equal = slots[counts > least], slots[counts == least]
            keys, room = self.keys[equal], _HEAP_PAIRS - len(above)
            slots = np.concatenate([above, equal[keys <= np.partition(keys, room - 1)[room - 1]]])
        return sorted(zip((-self.counts[slots]).tolist(), self.keys[slots].tolist(), strict=True))

    def count(self, key: int) -> int:
        """Return how often a pair occurs now."""
        return int(self.counts[_slot_of(self.keys, key)])

    def merge(self, key: int, new: int, width: int, stamp: int, least: int) -> list[tuple[int, int]]:
        """Replace a pair by token `new` of `width` bytes everywhere.

        Return (-count, pair) of the pairs that became more frequent and occur `least` times or more.
        """
        if new == len(self.widths):
            self.widths = np.concatenate([self.widths, np.ones_like(self.widths)])
        self.widths[new] = width
        occurrences = int(self.lengths[_slot_of(self.keys, key)])
        self._make_room(2 * min(occurrences, new + 1))
        slot = _slot_of(self.keys, key)
        positions = _unchain(slot, self.heads, self.lengths, self.following, self.preceding)
        if key >> _FIELD == key & _LOW:
            positions.sort()
        touched, self.pairs = _apply(
            key,
            new,
            stamp,
            positions,
            self.symbols,
            self.words,
            self.weights,
            self.widths,
            self.following,
            self.preceding,
            self.keys,
            self.counts,
            self.heads,
            self.lengths,
            self.stamps,
            self.pairs,
        )
        self.counts[slot] = 0
        touched = touched[self.counts[touched] >= least]
        return list(zip((-self.counts[touched]).tolist(), self.keys[touched].tolist(), strict=True))

    def _new_table(self, slots: int) -> None:
        self.keys = np.full(slots, _EMPTY, np.int64)
        self.counts = np.zeros(slots, np.int64)
        self.heads = np.full(slots, -1, np.int32)
        self.lengths = np.zeros(slots, np.int32)
        self.stamps = np.zeros(slots, np.int32)

    def _make_room(self, pairs: int) -> None:
        """Let the table hold `pairs` more; those that occur no more make room first."""
        if 4 * (self.pairs + pairs) <= 3 * len(self.keys):
            return
        self.pairs = int(np.count_nonzero(self.lengths))
        slots = _FIRST_PAIR_SLOTS
        while 8 * (self.pairs + pairs) > 5 * slots:
            slots *= 2
        old = self.keys, self.counts, self.heads, self.lengths
        self._new_table(slots)
        _move_pairs(*old, self.keys, self.counts, self.heads, self.lengths)


@kernel
def _slot_of(keys, key):
    """Return the slot of a pair, or of the empty place where it belongs."""
    mask = len(keys) - 1
    slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)) & mask
    while keys[slot] != _EMPTY and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@kernel
def _move_pairs(old_keys, old_counts, old_heads, old_lengths, keys, counts, heads, lengths):
    """Enter the pairs that occur into another table; stamps say nothing between two merges."""
    for old in range(len(old_keys)):
        if old_lengths[old]:
            slot = _slot_of(keys, old_keys[old])
            keys[slot], counts[slot] = old_keys[old], old_counts[old]
            heads[slot], lengths[slot] = old_heads[old], old_lengths[old]


@kernel
def _unchain(slot, heads, lengths, following, preceding):
    """Empty the chain of a pair; return its positions, int32 [occurrences]."""
    positions = np.empty(lengths[slot], np.int32)
    position = heads[slot]
    for i in range(len(positions)):
        positions[i] = position
        preceding[position] = _IN_NO_CHAIN
        position = following[position]
    heads[slot], lengths[slot] = -1, 0
    return positions


@kernel
def _leave(key, position, weight, following, preceding, keys, counts, heads, lengths):
    """Take one occurrence of a pair out of its count and its chain."""
    slot = _slot_of(keys, key)
    counts[slot] -= weight
    before, after = preceding[position], following[position]
    if before == _IN_NO_CHAIN:
        return  # the pair is the one that is being merged
    if before < 0:
        heads[slot] = after
    else:
        following[before] = after
    if after >= 0:
        preceding[after] = before
    lengths[slot] -= 1


@kernel
def _enter(key, position, weight, following, preceding, keys, counts, heads, lengths, pairs):
    """Count one occurrence of a pair and remember where; return (slot, pairs)."""
    slot = _slot_of(keys, key)
    if keys[slot] == _EMPTY:
        keys[slot] = key
        pairs += 1
    counts[slot] += weight
    first = heads[slot]
    following[position], preceding[position] = first, -1
    if first >= 0:
        preceding[first] = position
    heads[slot] = position
    lengths[slot] += 1
    return slot, pairs


@kernel
def _seed_pairs(symbols, words, weights, following, preceding, keys, counts, heads, lengths):
    """Enter the byte pairs of all pieces (at most 65,536 distinct ones); return how many there are."""
    pairs = 0
    for position in range(len(symbols) - 1):
        if words[position] == words[position + 1]:
            key = (np.int64(symbols[position]) << _FIELD) | np.int64(symbols[position + 1])
            weight = weights[words[position]]
            _, pairs = _enter(key, position, weight, following, preceding, keys, counts, heads, lengths, pairs)
    return pairs


@kernel
def _token_before(position, symbols, words):
    """Return the position of the token before, -1 at the start of a piece."""
    if position == 0 or words[position - 1] != words[position]:
        return np.int64(-1)
    last = np.int64(symbols[position - 1])
    return np.int64(position - 1) if last >= 0 else position + last


@kernel
def _token_after(position, width, words):
    """Return the position of the token after one of `width` bytes, -1 at the end of a piece."""
    after = np.int64(position) + width
    return after if after < len(words) and words[after] == words[position] else np.int64(-1)


@kernel
def _apply(key, new, stamp, positions, symbols, words, weights, widths, following, preceding,
           keys, counts, heads, lengths, stamps, pairs):  # fmt: skip
    """Merge one pair at all its positions; return (slots of pairs that gained occurrences, pairs)."""
    a, b = key >> _FIELD, key & _LOW
    touched = np.empty(2 * len(positions), np.int64)
    changed = 0
    for start in positions:
        position = np.int64(start)
        if symbols[position] != a:
            continue  # another merge has overlapped this occurrence
        partner = _token_after(position, widths[a], words)
        if partner < 0 or symbols[partner] != b:
            continue
        weight = weights[words[position]]
        before, after = _token_before(position, symbols, words), _token_after(position, widths[new], words)
        symbols[position], symbols[partner] = new, -1
        symbols[position + widths[new] - 1] = -widths[new]
        for side in range(2):
            if (before if side == 0 else after) < 0:
                continue
            if side == 0:
                lost, lost_at = (np.int64(symbols[before]) << _FIELD) | a, before
                gained, gained_at = (np.int64(symbols[before]) << _FIELD) | new, before
            else:
                lost, lost_at = (np.int64(b) << _FIELD) | np.int64(symbols[after]), partner
                gained, gained_at = (np.int64(new) << _FIELD) | np.int64(symbols[after]), position
            _leave(lost, lost_at, weight, following, preceding, keys, counts, heads, lengths)
            slot, pairs = _enter(gained, gained_at, weight, following, preceding, keys, counts, heads, lengths, pairs)
            if stamps[slot] != stamp:
                stamps[slot] = stamp
                touched[changed] = slot
                changed += 1
    return touched[:changed], pairs
