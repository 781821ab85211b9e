"""The padding limit: when best fit leaves more than 0.1 % of a chunk's plan empty, some documents are cut to fill it.

What: best fit cuts nothing that fits, and then some inputs leave much room: when many pieces are longer than half the
context, or when short pieces run out, every sequence keeps a little. The rule: if the share of padding would pass
`MAX_PADDING`, the emptiest sequences are taken apart, as few as bring it below, and their pieces go into the free room
of the others: whole where a room suffices (the smallest that does), else the head into the largest room and so on with
the rest. Below the limit nothing happens at all, and the cuts are counted (`Filled.cuts`).
Limit: no plan has fewer than ceil(tokens / context) sequences, so a small chunk may keep up to one sequence of padding.
Trap: cutting *long* documents elsewhere cannot help. A document of k full contexts and a rest has at least its rest in
each of its k + 1 pieces, so sequences that share documents hold no more than full ones and one with all the rests.
Searching for better sums of whole pieces (pairs, exact subset sums) did not beat best fit on the demo's lengths.
Cost: sorted lists of the sequences that are not full, in Python: milliseconds per chunk.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

MAX_PADDING = Fraction(1, 1000)


@dataclass
class Filled:
    """Pieces after filling, int64 [pieces] each (as in `Packing`, not sorted), and how many cuts it took."""

    sequence: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    sequences: int
    cuts: int


def most_sequences(tokens: int, context: int) -> int:
    """Return how many sequences may hold `tokens` tokens within the limit, at least as many as they fill."""
    return max(int(tokens / (context * (1 - MAX_PADDING))), -(-tokens // context))


def fill(
    sequence: np.ndarray, document: np.ndarray, start: np.ndarray, length: np.ndarray, sequences: int, context: int
) -> Filled:
    """Take apart the emptiest sequences until the padding is within the limit; all arrays int64 [pieces]."""
    excess = sequences - most_sequences(int(length.sum()), context)
    if excess <= 0:
        return Filled(sequence, document, start, length, sequences, 0)
    filled = np.bincount(sequence, length, sequences).astype(np.int64)
    opened = np.sort(np.argsort(filled, kind="stable")[:excess])
    stays = np.ones(sequences, bool)
    stays[opened] = False
    renumbered = np.cumsum(stays) - 1
    free = [(context - int(filled[k]), int(renumbered[k])) for k in np.flatnonzero(stays & (filled < context))]
    kept = stays[sequence]
    loose = np.flatnonzero(~kept)
    loose = loose[np.argsort(-length[loose], kind="stable")]
    placed, cuts = _place(list(zip(document[loose], start[loose], length[loose], strict=True)), sorted(free))
    moved = np.array(placed, np.int64).reshape(-1, 4)
    columns = (renumbered[sequence[kept]], document[kept], start[kept], length[kept])
    joined = [np.concatenate([column, moved[:, i]]) for i, column in enumerate(columns)]
    return Filled(*joined, sequences=sequences - excess, cuts=cuts)


def _place(pieces: list[tuple[int, int, int]], free: list[tuple[int, int]]) -> tuple[list[tuple], int]:
    """Put (document, start, length) into `free`, sorted (room, sequence); return (sequence, *piece) rows and cuts."""
    placed, cuts = [], 0
    for document, begin, size in pieces:
        start, left = int(begin), int(size)
        while left:
            where = bisect_left(free, (left, -1))
            room, sequence = free.pop(where if where < len(free) else -1)
            part = min(room, left)
            placed.append((sequence, document, start, part))
            start, left = start + part, left - part
            cuts += left > 0
            if room > part:
                insort(free, (room - part, sequence))
    return placed, cuts
