"""How much memory training takes, term by term, and how many sequences that leaves room for.

    weights         parameters x bytes of their number format
    gradients       trainable parameters x the same bytes
    optimizer       trainable parameters x bytes of the moments, by optimizer
    activations     per sequence and layer: 17 values of the width per token with fused attention (Korthikanti et al.
                    2022, arXiv 2205.05198, without its attention-matrix term); with activation checkpointing only the
                    layer's input, 1 value, and the full 17 once, for the layer being recomputed
    logits          per sequence: vocabulary x (float32 and the number format), or `loss_chunk` positions of it at most

Sharding (FSDP) divides the first three by the number of processes. The terms leave out fragmentation and the CUDA
context; `safety_factor` is for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LARGEST_BATCH = 32
MOMENT_BYTES = {"adamw": 8.0, "muon": 4.0, "adamw_8bit": 2.0, "sgd": 0.0}
_VOCABULARY = 32_768
_VALUES_PER_TOKEN = 17


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes held throughout, bytes per sequence, and how many sequences fit; `reason` says why none does."""

    weights: float
    gradients: float
    optimizer: float
    per_sequence: float
    room: float
    sequences: int
    reason: str

    @property
    def held(self) -> float:
        """Bytes that are held whatever the batch."""
        return self.weights + self.gradients + self.optimizer


def estimate_memory(
    parameters: float,
    memory_bytes: float,
    sequence_length: int,
    width: float,
    layers: float,
    vocabulary: int = _VOCABULARY,
    dtype_bytes: int = 2,
    weight_bytes: int | None = None,
    optimizer: str = "adamw",
    activation_checkpointing: bool = False,
    shards: int = 1,
    trainable_parameters: float | None = None,
    loss_chunk: int | None = None,
    safety_factor: float = 0.8,
) -> MemoryEstimate:
    """Return the estimate for a model of this shape; sizes in bytes, lengths in tokens.

    dtype_bytes: of the activations, and of weights and gradients unless `weight_bytes` says otherwise;
    trainable_parameters: those with gradients and moments (LoRA), all when not given; loss_chunk: positions whose
    logits are held at once. Raises ValueError for an unknown optimizer.
    """
    if optimizer not in MOMENT_BYTES:
        raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(MOMENT_BYTES)}")
    trainable = parameters if trainable_parameters is None else trainable_parameters
    stored = weight_bytes or dtype_bytes
    weights = parameters * stored / shards
    gradients = trainable * stored / shards
    moments = trainable * MOMENT_BYTES[optimizer] / shards
    full_layer = _VALUES_PER_TOKEN * dtype_bytes * width
    per_token = full_layer + layers * dtype_bytes * width if activation_checkpointing else full_layer * layers
    logits = vocabulary * (4 + dtype_bytes)
    per_sequence = sequence_length * per_token
    held = weights + gradients + moments
    if loss_chunk is None:
        per_sequence += sequence_length * logits
    else:
        held += min(loss_chunk, LARGEST_BATCH * sequence_length) * logits
    room = memory_bytes * safety_factor - held
    sequences = max(0, min(LARGEST_BATCH, int(room / per_sequence)))
    reason = ""
    if room <= 0:
        reason = (
            f"weights, gradients and {optimizer} moments alone take {held / 1e9:.1f} GB of the"
            f" {memory_bytes * safety_factor / 1e9:.1f} GB that may be used; shard the model, freeze weights (LoRA) or"
            " choose an optimizer with smaller moments"
        )
    elif sequences == 0:
        reason = (
            f"one sequence of {sequence_length:,} tokens takes {per_sequence / 1e9:.1f} GB and {room / 1e9:.1f} GB are"
            " left beside the model; shorten the sequences or switch activation checkpointing on"
        )
    return MemoryEstimate(weights, gradients, moments, per_sequence, room, sequences, reason)


def get_safe_batch_size(
    model_params_billions: float = 7.0,
    gpu_memory_gb: float | None = None,
    sequence_length: int = 2048,
    dtype_bytes: int = 2,
    safety_factor: float = 0.8,
    *,
    width: int | None = None,
    layers: int | None = None,
    **shape: Any,
) -> int:
    """Return how many sequences fit, at most 32; 0 when none does, and then print why.

    Without `width` and `layers` they follow from the number of parameters at the usual 128 columns per layer. `shape`
    takes what `estimate_memory` takes: vocabulary, weight_bytes, optimizer, activation_checkpointing, shards,
    trainable_parameters, loss_chunk. Memory is that of the smallest visible GPU when not given; without a GPU the
    answer is 1. Raises ValueError for an unknown optimizer.
    """
    if gpu_memory_gb is None:
        import torch

        if not torch.cuda.is_available():
            return 1
        devices = range(torch.cuda.device_count())
        gpu_memory_gb = min(torch.cuda.get_device_properties(device).total_memory for device in devices) / 1e9
    parameters = model_params_billions * 1e9
    usual_width = (parameters * 128 / 12) ** (1 / 3)
    estimate = estimate_memory(
        parameters,
        gpu_memory_gb * 1e9,
        sequence_length,
        width or usual_width,
        layers or max(1.0, usual_width / 128),
        dtype_bytes=dtype_bytes,
        safety_factor=safety_factor,
        **shape,
    )
    if estimate.reason:
        print(f"safe batch size 0: {estimate.reason}")
    return estimate.sequences
