"""One micro-batch through the model: hidden states inside documents, then the loss without all logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attention import attention_arguments
from .batches import Batch
from .loss import summed_cross_entropy
from .run_state import TrainingRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenLoss(torch.nn.Module):
    """The model with its loss as one module, so that data-parallel wrappers see every parameter's use.

    The matrix products run in `dtype` under autocast; norms, softmax and the residual stream stay in float32, as do the
    weights. kernels: "none" for the chunked loss of loss.py, "liger" or "cce" for the fused ones.
    """

    def __init__(self, model: PreTrainedModel, attention: str, kernels: str, dtype: torch.dtype):
        super().__init__()
        self.model = model
        self.attention, self.kernels, self.dtype = attention, kernels, dtype

    def forward(self, inputs: Tensor, targets: Tensor, positions: Tensor, documents: Tensor, chunk: int) -> Tensor:
        """Return the summed cross-entropy in nats, a float32 scalar; tensors [batch, length] as in Batch."""
        states = self.hidden(inputs, positions, documents).float().flatten(0, 1)
        return self._loss(states, self.model.get_output_embeddings().weight, targets.flatten(), chunk)

    def hidden(self, inputs: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """Return the last hidden states [batch, length, width]."""
        low_precision = self.dtype != torch.float32
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=low_precision):
            return self.model.base_model(
                input_ids=inputs,
                position_ids=positions,
                use_cache=False,
                **attention_arguments(self.attention, documents),
            ).last_hidden_state

    def _loss(self, states: Tensor, head: Tensor, targets: Tensor, chunk: int) -> Tensor:
        if self.kernels == "liger":
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

            return liger_fused_linear_cross_entropy(
                states.to(self.dtype), head.to(self.dtype), targets, reduction="sum"
            ).float()
        if self.kernels == "cce":
            from cut_cross_entropy import linear_cross_entropy

            return linear_cross_entropy(states.to(self.dtype), head.to(self.dtype), targets, reduction="sum").float()
        return summed_cross_entropy(states, head, targets, chunk, self.dtype)


def summed_loss(run: TrainingRun, batch: Batch, chunk: int) -> Tensor:
    """Return the summed cross-entropy of a batch in nats, a float32 scalar that backward() can start from."""
    return run.network(batch.inputs, batch.targets, batch.positions, batch.documents, chunk)
