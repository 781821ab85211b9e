"""Cross-entropy of the next token without ever holding all logits.

What: the logits of a batch are by far its largest tensor (8 sequences of 2,048 tokens with 32,768 ids: 2.1 GB in
float32, and as much again for their gradient). Here they are made for `chunk` positions at a time, turned into
their own gradient in place, multiplied into the gradients of the hidden states and of the head, and forgotten.

How: d loss / d logits = softmax(logits) - one_hot(target), so the backward pass needs nothing that the forward pass
does not have at hand. Both gradients are therefore computed in the forward pass and only scaled in the backward one:
three matrix products in total, where recomputing the logits would take four.

Traps: the normaliser must be that of the whole optimizer step, not of the micro-batch, or the gradient depends on how
the step is split; so this returns the *sum* over targets and the caller divides. Softmax runs in float32 even when
the products run in bfloat16, which between 16 and 32 knows only multiples of 1/8.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
# A megabyte in float32, which a core of today keeps close through all the steps of the softmax: 2,048 positions of
# 4,096 ids in bfloat16 took 30 to 44 ms in one piece, 19 to 21 in pieces of 64 rows.
CACHED_NUMBERS = 1 << 18


def _blocks(logits: Tensor) -> list[slice]:
    """Return the rows in pieces that a CPU's caches hold; a GPU takes all at once."""
    count = len(logits)
    size = max(1, CACHED_NUMBERS // logits.shape[1]) if logits.device.type == "cpu" else max(1, count)
    return [slice(first, first + size) for first in range(0, count, size)]


def _loss_of(logits: Tensor, targets: Tensor, needs_gradient: bool) -> Tensor:
    """Return the summed loss of these rows, whose logits become their own gradient if it is needed."""
    counted = targets != IGNORED
    index = torch.where(counted, targets, 0)[:, None]
    log_probabilities = torch.log_softmax(logits, 1, dtype=torch.float32)
    aimed = log_probabilities.gather(1, index)[:, 0]
    if needs_gradient:
        weight = counted[:, None].float()
        probabilities = log_probabilities.exp_().mul_(weight)
        logits.copy_(probabilities.scatter_add_(1, index, -weight))
    return torch.where(counted, -aimed, 0.0).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context, hidden: Tensor, head: Tensor, targets: Tensor, chunk: int, dtype: torch.dtype, needs_gradient: bool
    ) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        matrix = head.to(dtype)
        hidden_gradient = torch.empty_like(hidden) if needs_gradient else None
        head_gradient = torch.zeros_like(head) if needs_gradient else None
        held = torch.empty(min(chunk, targets.numel()), head.shape[0], dtype=dtype, device=hidden.device)
        for start in range(0, targets.numel(), chunk):
            states = hidden[start : start + chunk].to(dtype)
            logits = torch.mm(states, matrix.T, out=held[: len(states)])
            for rows in _blocks(logits):
                loss += _loss_of(logits[rows], targets[start : start + chunk][rows], needs_gradient)
            if not needs_gradient:
                continue
            hidden_gradient[start : start + chunk] = logits @ matrix
            if dtype is head_gradient.dtype:
                head_gradient.addmm_(logits.T, states)
            else:
                head_gradient += logits.T @ states
        context.save_for_backward(hidden_gradient, head_gradient)
        return loss

    @staticmethod
    def backward(context, scale: Tensor):
        hidden_gradient, head_gradient = context.saved_tensors
        return hidden_gradient * scale, head_gradient * scale, None, None, None, None


def summed_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """Return the sum over targets of -log p(target) in nats, a float32 scalar.

    hidden: [positions, width], head: [vocabulary, width], targets: [positions] with -100 where nothing is predicted;
    chunk: positions whose logits exist at once; dtype: number format of the matrix products. Differentiable once in
    hidden and head.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and targets {tuple(targets.shape)} do not belong together")
    # Asked here: inside `forward` gradients are off, and a leaf says that it requires them under no_grad too.
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    return _ChunkedCrossEntropy.apply(hidden, head, targets, chunk, dtype, needs_gradient)
