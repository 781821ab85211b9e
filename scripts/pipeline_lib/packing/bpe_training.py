"""Train byte-level BPE merges from counted pieces, with the result that Hugging Face's BpeTrainer gives.

What: start from bytes; again and again join the pair of neighbouring tokens that occurs most often into a new token.
How: all pieces lie in one array of positions, linked to their left and right neighbour inside the piece. Each pair has
a count and a chain of the positions where it was seen. A merge walks one chain, relinks, and corrects the counts of the
neighbours only. The next best pair comes from a heap with lazy entries: a popped entry whose count is out of date is
put back with the true one. Ties go to the pair with the smaller ids, so the result depends on nothing else.
Cost: about a second for 8,192 tokens from 25 MB of text; some 30 bytes of memory per byte of distinct piece.
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
from pipeline_lib.stage import UserError

from .pretoken_counts import PretokenCounts

_EMPTY = -1
_FIELD = 32
_LOW = (1 << _FIELD) - 1
_FIRST_PAIR_SLOTS = 1 << 17
_MOST_NUMBERED = 2**31 - 1  # positions and chain nodes: their numbers are int32


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

    The caller sees from `len(tokens)` which of the two it was. Raises UserError for more pieces than int32 can number.
    """
    tokens = [bytes([value]) for value in byte_order()]
    ids = {token: identity for identity, token in enumerate(tokens)}
    state = _State(counted)
    heap = state.initial_heap()
    order: dict[tuple[int, int], int] = {}
    merges = 0
    while len(tokens) < size and heap:
        promised, key = heapq.heappop(heap)
        count = state.count(key)
        if count < min_pair_count:
            continue
        if count != -promised:
            heapq.heappush(heap, (-count, key))
            continue
        a, b = key >> _FIELD, key & _LOW
        spelled = tokens[a] + tokens[b]
        new = ids.setdefault(spelled, len(tokens))
        if new == len(tokens):
            tokens.append(spelled)
        order[a, b] = merges  # a pair that comes back is ranked by its last merge, as in the peer
        merges += 1
        for changed_count, changed in state.merge(key, new, merges, len(tokens)):
            if changed_count >= min_pair_count:
                heapq.heappush(heap, (-changed_count, changed))
    return Merges(tokens, sorted(order, key=order.__getitem__))


class _State:
    """All positions, the pair table and the chains; grows between merges so that the compiled code never has to."""

    def __init__(self, counted: PretokenCounts):
        _check_numbered(len(counted.arena))
        rank = np.empty(256, np.int32)
        rank[byte_order()] = np.arange(256, dtype=np.int32)
        lengths = np.diff(counted.starts)
        self.symbols = rank[counted.arena]
        self.words = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        self.weights = counted.counts
        self.left, self.right = _links(self.words)
        self.keys = np.full(_FIRST_PAIR_SLOTS, _EMPTY, np.int64)
        self.counts = np.zeros(_FIRST_PAIR_SLOTS, np.int64)
        self.heads = np.full(_FIRST_PAIR_SLOTS, -1, np.int32)
        self.lengths = np.zeros(_FIRST_PAIR_SLOTS, np.int32)
        self.stamps = np.zeros(_FIRST_PAIR_SLOTS, np.int32)
        self.chain = np.empty((len(self.symbols) + 1024, 2), np.int32)
        self.pairs, self.nodes = _seed_pairs(
            self.symbols,
            self.words,
            self.weights,
            self.right,
            self.keys,
            self.counts,
            self.heads,
            self.lengths,
            self.chain,
        )

    def initial_heap(self) -> list[tuple[int, int]]:
        """Return (-count, pair) of every pair, as a heap."""
        present = self.keys != _EMPTY
        heap = list(zip((-self.counts[present]).tolist(), self.keys[present].tolist(), strict=True))
        heapq.heapify(heap)
        return heap

    def count(self, key: int) -> int:
        """Return how often a pair occurs now."""
        return int(self.counts[_slot_of(self.keys, key)])

    def merge(self, key: int, new: int, stamp: int, tokens: int) -> list[tuple[int, int]]:
        """Replace a pair by token `new` everywhere; return (count, pair) of the pairs that became more frequent."""
        slot = _slot_of(self.keys, key)
        occurrences = int(self.lengths[slot])
        self._make_room(pairs=2 * min(occurrences, tokens), nodes=2 * occurrences)
        slot = _slot_of(self.keys, key)
        positions = _unchain(self.heads[slot], occurrences, self.chain)
        self.heads[slot], self.lengths[slot] = -1, 0
        if key >> _FIELD == key & _LOW:
            positions.sort()
        touched, self.pairs, self.nodes = _apply(
            key,
            new,
            stamp,
            positions,
            self.symbols,
            self.words,
            self.weights,
            self.left,
            self.right,
            self.keys,
            self.counts,
            self.heads,
            self.lengths,
            self.stamps,
            self.chain,
            self.pairs,
            self.nodes,
        )
        self.counts[slot] = 0
        return list(zip(self.counts[touched].tolist(), self.keys[touched].tolist(), strict=True))

    def _make_room(self, pairs: int, nodes: int) -> None:
        while 2 * (self.pairs + pairs) > len(self.keys):
            old = self.keys
            self.keys = np.full(2 * len(old), _EMPTY, np.int64)
            self.keys, moved = _rehash(old, self.keys)
            for name in ("counts", "heads", "lengths", "stamps"):
                before = getattr(self, name)
                after = np.full(len(self.keys), -1 if name == "heads" else 0, before.dtype)
                after[moved[moved >= 0]] = before[moved >= 0]
                setattr(self, name, after)
        _check_numbered(self.nodes + nodes)
        if self.nodes + nodes > len(self.chain):
            longer = np.empty((max(2 * len(self.chain), self.nodes + nodes), 2), np.int32)
            longer[: self.nodes] = self.chain[: self.nodes]
            self.chain = longer


def _check_numbered(number: int) -> None:
    """Raise UserError for as many positions or chain nodes as int32 cannot number: they would wrap around."""
    if number >= _MOST_NUMBERED:
        raise UserError(
            "pack.training_bytes: the text that trains the tokenizer has too many different pieces (a table of"
            f" {_MOST_NUMBERED:,} entries is full); set training_bytes lower"
        )


@kernel
def _links(words):
    """Return each position's left and right neighbour inside its piece, -1 at the ends."""
    left = np.full(len(words), -1, np.int32)
    right = np.full(len(words), -1, np.int32)
    for position in range(1, len(words)):
        if words[position] == words[position - 1]:
            left[position] = position - 1
            right[position - 1] = position
    return left, right


@kernel
def _slot_of(keys, key):
    """Return the slot of a pair, or of the empty place where it belongs."""
    mask = len(keys) - 1
    slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)) & mask
    while keys[slot] != _EMPTY and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@kernel
def _rehash(old, new):
    """Enter the old keys into the larger table; return it with, for each old slot, its new slot or -1."""
    moved = np.full(len(old), -1, np.int64)
    for slot in range(len(old)):
        if old[slot] != _EMPTY:
            moved[slot] = _slot_of(new, old[slot])
            new[moved[slot]] = old[slot]
    return new, moved


@kernel
def _unchain(head, occurrences, chain):
    """Return the positions of a chain, int32 [occurrences]."""
    positions = np.empty(occurrences, np.int32)
    node = head
    for i in range(occurrences):
        positions[i] = chain[node, 0]
        node = chain[node, 1]
    return positions


@kernel
def _see(key, position, weight, keys, counts, heads, lengths, chain, pairs, nodes):
    """Count one occurrence of a pair and remember where; return (slot, pairs, nodes)."""
    slot = _slot_of(keys, key)
    if keys[slot] == _EMPTY:
        keys[slot] = key
        pairs += 1
    counts[slot] += weight
    chain[nodes, 0], chain[nodes, 1] = position, heads[slot]
    heads[slot] = nodes
    lengths[slot] += 1
    return slot, pairs, nodes + 1


@kernel
def _seed_pairs(symbols, words, weights, right, keys, counts, heads, lengths, chain):
    """Enter the byte pairs of all pieces (at most 65,536 distinct ones); return (pairs, chain nodes)."""
    pairs = nodes = 0
    for position in range(len(symbols)):
        if right[position] >= 0:
            key = (np.int64(symbols[position]) << _FIELD) | np.int64(symbols[position + 1])
            weight = weights[words[position]]
            _, pairs, nodes = _see(key, position, weight, keys, counts, heads, lengths, chain, pairs, nodes)
    return pairs, nodes


@kernel
def _apply(key, new, stamp, positions, symbols, words, weights, left, right,
           keys, counts, heads, lengths, stamps, chain, pairs, nodes):  # fmt: skip
    """Merge one pair at all its positions; return (slots of pairs that gained occurrences, pairs, chain nodes)."""
    a, b = key >> _FIELD, key & _LOW
    touched = np.empty(2 * len(positions), np.int64)
    changed = 0
    for position in positions:
        partner = right[position]
        if symbols[position] != a or partner < 0 or symbols[partner] != b:
            continue  # another merge has overlapped this occurrence
        weight = weights[words[position]]
        before, after = left[position], right[partner]
        symbols[position], symbols[partner], right[position] = new, -1, after
        if after >= 0:
            left[after] = position
        for side in range(2):
            if (before if side == 0 else after) < 0:
                continue
            if side == 0:
                lost = (np.int64(symbols[before]) << _FIELD) | a
                gained, where = (np.int64(symbols[before]) << _FIELD) | new, before
            else:
                lost = (np.int64(b) << _FIELD) | np.int64(symbols[after])
                gained, where = (np.int64(new) << _FIELD) | np.int64(symbols[after]), position
            counts[_slot_of(keys, lost)] -= weight
            slot, pairs, nodes = _see(gained, where, weight, keys, counts, heads, lengths, chain, pairs, nodes)
            if stamps[slot] != stamp:
                stamps[slot] = stamp
                touched[changed] = slot
                changed += 1
    return touched[:changed], pairs, nodes
