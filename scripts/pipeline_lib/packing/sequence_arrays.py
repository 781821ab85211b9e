"""The arrays of a packed sequence, made of the pieces of a decoded chunk (reader.py says what each of them holds)."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline_lib.compiled import kernel

from .chunk_format import ChunkFile

IGNORED = -100
ARRAYS = ("input_ids", "labels", "position_ids", "segment_ids")


class DecodedChunks:
    """The tokens of the chunks used last; the array of the oldest is filled again, which costs no new memory."""

    def __init__(self, open_chunk: Callable[[int], ChunkFile], count: int):
        """Hold `count` chunks; open_chunk: returns the file of a chunk by its number."""
        self._open_chunk, self._count = open_chunk, count
        self._tokens: OrderedDict[int, np.ndarray] = OrderedDict()

    def tokens(self, chunk: int) -> np.ndarray:
        """Return all tokens of a chunk, until as many others were asked for. Raises ChunkDamaged."""
        if chunk not in self._tokens:
            oldest = self._tokens.popitem(last=False)[1] if len(self._tokens) >= self._count else None
            self._tokens[chunk] = self._open_chunk(chunk).tokens(oldest)
        self._tokens.move_to_end(chunk)
        return self._tokens[chunk]


def as_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch with tensors of torch in the memory of its arrays."""
    import torch

    return {name: torch.from_numpy(value) if name != "state" else value for name, value in batch.items()}


@kernel
def fill_row(tokens, starts, lengths, pad, arrays, row):
    """Write the pieces of one sequence one after the other; slices, so that the loops become vector instructions.

    arrays: [4, rows, context], in the order of ARRAYS; every place of that row is written.
    """
    input_ids, labels, position_ids, segment_ids = arrays[0, row], arrays[1, row], arrays[2, row], arrays[3, row]
    place = 0
    for piece in range(len(starts)):
        length = lengths[piece]
        own = tokens[starts[piece] : starts[piece] + length]
        ids, after = input_ids[place : place + length], labels[place : place + length]
        positions, segments = position_ids[place : place + length], segment_ids[place : place + length]
        for i in range(len(own)):
            ids[i] = own[i]
        if len(own) > 0:
            after[0] = IGNORED
        for i in range(1, len(own)):
            after[i] = own[i]
        for i in range(len(own)):
            positions[i] = i
            segments[i] = piece + 1
        place += length
    for i in range(place, len(input_ids)):
        input_ids[i] = pad
        labels[i] = IGNORED
        position_ids[i] = i - place
        segment_ids[i] = 0
