"""One micro-batch through the model: hidden states inside documents, then the chunked loss."""

from __future__ import annotations

import torch

from .attention_mask import document_mask
from .batches import Batch
from .loss import summed_cross_entropy
from .run_state import TrainingRun


def summed_loss(run: TrainingRun, batch: Batch, chunk: int) -> torch.Tensor:
    """Return the summed cross-entropy of a batch in nats, a float32 scalar that backward() can start from.

    The matrix products run in the run's number format under autocast; norms, softmax and the residual stream stay in
    float32, as do the weights.
    """
    low_precision = run.compute_dtype != torch.float32
    with torch.autocast(run.device.type, dtype=run.compute_dtype, enabled=low_precision):
        states = run.body(
            input_ids=batch.inputs,
            position_ids=batch.positions,
            attention_mask=document_mask(batch.documents),
            use_cache=False,
        ).last_hidden_state
    states = states.float().flatten(0, 1)
    return summed_cross_entropy(states, run.head, batch.targets.flatten(), chunk, run.compute_dtype)
