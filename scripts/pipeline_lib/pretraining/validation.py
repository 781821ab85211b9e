"""Validation: mean loss per predicted token, and bits per byte of the text those tokens spell.

Bits per byte divides by the bytes of the text instead of by tokens, so models with different tokenizers can be
compared; a tokenizer with longer tokens has a higher loss per token for the same text. Special tokens spell no bytes:
their loss counts, their length is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .accumulation import with_memory
from .batches import Batch
from .forward import summed_loss
from .run_state import TrainingRun


@dataclass(frozen=True)
class ValidationResult:
    """loss: nats per predicted token; bits_per_byte; targets: predicted tokens."""

    loss: float
    bits_per_byte: float
    targets: int


@torch.no_grad()
def validate(
    run: TrainingRun, batches: Iterable[Batch], token_bytes: torch.Tensor, chunk: int, stop: Callable[[], bool]
) -> ValidationResult | None:
    """Return the result over `batches`, or None as soon as `stop()` says so.

    With several processes each computes its part of every batch; a part that memory does not suffice for is done in
    halves. token_bytes: [vocabulary] bytes of text each token spells. Sums run in float64, so the order of batches of
    equal size does not show.
    """
    nats, targets, size = 0.0, 0, 0
    for batch in batches:
        if stop():
            return None
        mine = batch.part(run.processes.rank, run.processes.size).to(run.device)

        def forward(size: int, mine: Batch = mine) -> torch.Tensor:
            return torch.stack([summed_loss(run, part, chunk).double() for part in mine.split(size)]).sum()

        count, length = mine.inputs.shape
        nats += float(run.processes.sum(with_memory(run, length, count, forward)))
        targets += batch.target_count
        size += int(token_bytes[batch.targets[batch.counted]].sum())
    return ValidationResult(nats / targets, nats / math.log(2) / size, targets)
