"""What a run has computed: tokens told apart by what they were good for, and the FLOPs they cost.

    useful      predicted for the first time
    repeated    predicted again: in a later pass, in another packing, in a copy that the mixture asked for
    masked      text that nothing predicts: the first token of each document, which has nothing before it
    padding     places of a packed sequence that hold no text

The loop counts useful and repeated together, as predicted; at the end the plan tells them apart (text_read.py).
FLOPs are those of the model, whatever the machine really did: 6 for each token and parameter of a matrix (2 forward, 4
backward), and 12 for each pair of tokens that attention compares, per feature and block (two products forward, four
backward, two FLOPs each). A token looks at itself and its predecessors in its own document only. Padding and
recomputation count nothing, so a meter that uses these FLOPs cannot be raised by wasting work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .batches import Batch


@dataclass
class TokenCounts:
    """Tokens of the steps so far by use (see the head of this file), and the pairs that attention compared."""

    predicted: int = 0
    masked: int = 0
    padding: int = 0
    pairs: int = 0

    def add(self, batch: Batch) -> None:
        """Count the batch of one step."""
        text = batch.documents != 0
        real, predicted = int(text.sum()), batch.target_count
        self.predicted += predicted
        self.masked += real - predicted
        self.padding += text.numel() - real
        self.pairs += int((batch.positions + 1)[text].sum())

    @property
    def total(self) -> int:
        """All places of the packed sequences."""
        return self.predicted + self.masked + self.padding

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of a model: `per_token` of its matrices, `per_pair` of its attention, forward and backward."""

    per_token: int
    per_pair: int

    def of(self, counts: TokenCounts) -> int:
        """Return the FLOPs that the counted tokens cost."""
        return self.per_token * (counts.total - counts.padding) + self.per_pair * counts.pairs


def flop_count(matmul_parameters: int, layers: int, attention_width: int) -> FlopCount:
    """Return the FLOPs of a model; attention_width: heads x features of a head."""
    return FlopCount(6 * matmul_parameters, 12 * layers * attention_width)


def measure_peak(device: torch.device, dtype: torch.dtype, timed: Callable[..., float]) -> float:
    """Return the FLOP/s of the best large square product on this machine, the highest of several sizes.

    Not a data sheet's figure: those are reached by no real product, and quoting one lets two machines' utilisation be
    compared that never had the same chance.
    """
    sizes = (4096, 8192) if device.type == "cuda" else (1024, 2048)
    best = 0.0
    for size in sizes:
        left = torch.ones(size, size, device=device, dtype=dtype)
        right = left.clone()
        for _ in range(4):
            best = max(best, 2 * size**3 / timed(lambda a=left, b=right: a @ b, device))
    return best
