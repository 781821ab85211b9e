"""The norm of the gradient, of the whole and of each block, measured before it is clipped, and the clipping."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .distribution import Processes, local


def parameter_norms(tensors: list[Tensor], processes: Processes) -> Tensor:
    """Return the Euclidean norm of each tensor in float32, also of tensors that FSDP has cut over the processes."""
    norms = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors], 2, dtype=torch.float32))
    if processes.strategy == "fsdp":
        norms = processes.sum(norms.square()).sqrt()
    return norms


def clip(gradients: list[Tensor], norm: float, limit: float | None) -> None:
    """Scale gradients of the whole norm `norm` down to `limit`; shorter ones are left as they are."""
    if limit is not None and norm > limit:
        torch._foreach_mul_([local(gradient) for gradient in gradients], limit / norm)


def norms_by_block(names: list[str], norms: list[float]) -> dict[str, float]:
    """Sum up the norms of parameters by the block they belong to: "embedding", "block 0" ..., "final norm", "head"."""
    squares: dict[str, float] = {}
    for name, norm in zip(names, norms, strict=True):
        block = _block(name)
        squares[block] = squares.get(block, 0.0) + norm * norm
    return {block: math.sqrt(square) for block, square in squares.items()}


def _block(name: str) -> str:
    _, found, rest = name.partition(".layers.")
    if found:
        return f"block {rest.partition('.')[0]}"
    if "embed" in name:
        return "embedding"
    return "head" if "head" in name else "final norm"
