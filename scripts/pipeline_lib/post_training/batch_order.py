"""The order in which examples are seen: a pure function of seed and epoch, so that resuming needs no sampler state.

"length" makes micro-batches of similar lengths, which is what padding costs on short chat data: a fixed number of
batches is drawn at random, sorted by length, cut into batches, and the batches are shuffled. With 50 batches per pool
the order stays close to random while almost no padding is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy
from torch.utils.data import Sampler

POOL_BATCHES = 50


def epoch_order(lengths: Sequence[int], batch: int, by_length: bool, seed: int, epoch: int) -> list[int]:
    """Return every index once, in the order of one epoch; each run of `batch` indices is one micro-batch."""
    random = numpy.random.Generator(numpy.random.PCG64([seed, epoch]))
    order = random.permutation(len(lengths))
    if not by_length or not lengths:
        return order.tolist()
    sizes = numpy.asarray(lengths)
    batches = []
    for start in range(0, len(order), batch * POOL_BATCHES):
        pool = order[start : start + batch * POOL_BATCHES]
        pool = pool[numpy.argsort(-sizes[pool], kind="stable")]
        batches += [pool[first : first + batch] for first in range(0, len(pool), batch)]
    short = [batches.pop()] if len(batches[-1]) < batch else []  # cut by count, so the short batch must be the last
    return numpy.concatenate([batches[i] for i in random.permutation(len(batches))] + short).tolist()


class EpochOrder(Sampler[int]):
    """A sampler over `epoch_order`; `set_epoch` is called by the trainer at the start of each epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, by_length: bool, seed: int):
        self._arguments = (list(lengths), batch, by_length, seed)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._arguments[0])

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(*self._arguments, self.epoch))
