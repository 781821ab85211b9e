"""Bits per byte of a model on the validation split, the same for every contender."""

import math
from collections.abc import Callable

import torch

from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.attention import attention_arguments, use_attention
from pipeline_lib.pretraining.batches import Batch, PackedData

VALIDATION_TOKENS = 60_000


def bits_per_byte(cache: PackedCache, context: int, logits_of: Callable[[Batch], torch.Tensor]) -> float:
    """Return the bits per byte when `logits_of` a batch are [batch, length, vocabulary]."""
    data = PackedData(cache, context, 8, 42, VALIDATION_TOKENS)
    nats, size = 0.0, 0
    with torch.no_grad():
        for batch in data.validation_batches(8):
            counted = batch.counted
            logits = logits_of(batch)[counted].float()
            wanted = batch.targets[counted]
            nats += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").double())
            size += int(data.token_bytes[wanted].sum())
    return nats / math.log(2) / size


def hf_bits_per_byte(model: torch.nn.Module, cache: PackedCache, context: int) -> float:
    """Return the better of two figures of a transformers model: documents apart, and whole rows as it was trained."""
    was_training = model.training
    model.eval()
    before = model.config._attn_implementation

    def apart(batch: Batch) -> torch.Tensor:
        arguments = attention_arguments("documents", batch.documents)
        return model(input_ids=batch.inputs, position_ids=batch.positions, use_cache=False, **arguments).logits

    whole = bits_per_byte(cache, context, lambda batch: model(input_ids=batch.inputs, use_cache=False).logits)
    use_attention(model, "documents")
    separate = bits_per_byte(cache, context, apart)
    model.set_attn_implementation(before)
    model.train(was_training)
    return min(whole, separate)
