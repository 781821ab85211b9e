"""Causal attention on a CPU that does the work of the documents, not of the packed sequence.

A dense mask closes the view from one document to the next, but the products behind it are still made: a sequence of
2,048 tokens holding sixteen documents of 128 costs 16 times what its documents cost, 32 times with the causal half.
Here torch's own blocked ("flash") kernel is called on views of the packed tensors: once per document, or once for rows
next to each other whose documents lie alike (as where each fills its sequence). So nothing is copied but the results,
no mask exists, and padding costs nothing.

Both passes are one opaque operator each (torch.library), so torch.compile neither looks inside nor compiles anew for
another arrangement of documents. Cost: about 20 microseconds per document and call.

Traps: the kernel shares heads times rows out among the threads, so three heads of one document keep two threads busy
for as long as four would. A document must be one unbroken run of equal numbers; the packed cache promises that. In
bfloat16 the kernel has code generated for every new length of a document, which took 2.7 times as long as float32 and
a gigabyte of memory. So where the rest multiplies in bfloat16, only documents of 256 tokens and more do here, filled
up to a multiple of 64, and only forward: 2.1 times as fast on a CPU with bfloat16 units, where the kernel's backward
pass gains nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Shorter documents gain nothing from bfloat16; longer ones are filled up to a multiple of this many tokens.
SHORTEST_IN_BFLOAT16, MULTIPLE = 256, 64


def document_runs(documents: Tensor) -> list[tuple[int, int, int]]:
    """Return (row, start, end) of every document in `documents` [batch, length], padding (number 0) left out."""
    length = documents.shape[1]
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    rows, places = starts.nonzero(as_tuple=True)
    is_document = (documents[rows, places] != 0).tolist()
    rows, places = rows.tolist(), places.tolist()
    ends = [
        places[index + 1] if index + 1 < len(rows) and rows[index + 1] == row else length
        for index, row in enumerate(rows)
    ]
    return [run[:3] for run in zip(rows, places, ends, is_document, strict=True) if run[3]]


def alike(documents: Tensor) -> list[tuple[slice, slice, slice]]:
    """Return where documents lie in [batch, heads, length]; those lying alike in consecutive rows are one block."""
    latest: dict[tuple[int, int], list[int]] = {}
    blocks = []
    for row, start, end in document_runs(documents):
        rows = latest.get((start, end))
        if rows is not None and rows[1] == row:
            rows[1] = row + 1
        else:
            rows = latest[start, end] = [row, row + 1]
            blocks.append((rows, start, end))
    return [(slice(*rows), slice(None), slice(start, end)) for rows, start, end in blocks]


@torch.library.custom_op("llm_pipeline::document_attention", mutates_args=())
def document_attention(
    query: Tensor, key: Tensor, value: Tensor, documents: Tensor, scale: float, number_format: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return causal attention within documents [batch, heads, length, features] and its log-normalisers.

    query, key, value: float32 [batch, heads, length, features] on the CPU; documents: [batch, length], 0 for padding,
    whose output is zero; number_format: of the forward products, float32 or bfloat16. The second result, float32
    [batch, heads, length], is for the backward pass.
    """
    batch, heads, length, features = query.shape
    output = query.new_zeros(batch, length, heads, features).transpose(1, 2)
    normaliser = query.new_zeros(batch, length, heads, dtype=torch.float32).transpose(1, 2)
    for part in alike(documents):
        operands = query[part], key[part], value[part]
        count = operands[0].shape[2]
        if number_format == torch.bfloat16 and count >= SHORTEST_IN_BFLOAT16:
            operands = tuple(_filled_up(operand) for operand in operands)
        made, normalisers = _forward(*operands, 0.0, True, scale=scale)
        output[part], normaliser[part] = made[:, :, :count], normalisers[:, :, :count]
    return output, normaliser


def _filled_up(tensor: Tensor) -> Tensor:
    """Return [batch, heads, length, features] in bfloat16 with zeros at its end, which no earlier token attends to."""
    batch, heads, length, features = tensor.shape
    result = tensor.new_zeros(batch, -(-length // MULTIPLE) * MULTIPLE, heads, features, dtype=torch.bfloat16)
    result = result.transpose(1, 2)
    result[:, :, :length] = tensor
    return result


@document_attention.register_fake
def _(query, key, value, documents, scale, number_format):
    batch, heads, length, features = query.shape
    output = query.new_empty(batch, length, heads, features).transpose(1, 2)
    return output, query.new_empty(batch, length, heads, dtype=torch.float32).transpose(1, 2)


@torch.library.custom_op("llm_pipeline::document_attention_backward", mutates_args=())
def document_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    normaliser: Tensor,
    documents: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; arguments as `document_attention` had and gave them."""
    results = _zeros_like_heads(query), _zeros_like_heads(key), _zeros_like_heads(value)
    for part in alike(documents):
        made = _backward(
            gradient[part], query[part], key[part], value[part], output[part], normaliser[part], 0.0, True, scale=scale
        )
        for result, piece in zip(results, made, strict=True):
            result[part] = piece
    return results


@document_attention_backward.register_fake
def _(gradient, query, key, value, output, normaliser, documents, scale):
    return tuple(torch.empty_like(_zeros_like_heads(tensor)) for tensor in (query, key, value))


def _zeros_like_heads(tensor: Tensor) -> Tensor:
    """Return zeros of the shape [batch, heads, length, features], laid out [batch, length, heads, features]."""
    batch, heads, length, features = tensor.shape
    return tensor.new_zeros(batch, length, heads, features).transpose(1, 2)


def _remember(ctx, inputs, output) -> None:
    query, key, value, documents, ctx.scale, _ = inputs
    ctx.save_for_backward(query, key, value, *output, documents)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, gradient: Tensor, _: Tensor | None):
    query, key, value, output, normaliser, documents = ctx.saved_tensors
    gradients = document_attention_backward(gradient, query, key, value, output, normaliser, documents, ctx.scale)
    return *gradients, None, None, None


document_attention.register_autograd(_gradients, setup_context=_remember)
