"""Muon with the matrix products batched and in the number format this machine multiplies fastest.

What: each matrix's momentum is replaced by (nearly) the nearest orthogonal matrix, so that every direction moves
equally far (Jordan et al. 2024). "Nearest orthogonal" is five Newton-Schulz iterations X <- aX + (bA + cA^2)X with
A = XX^T: only matrix products, no decomposition.

Why not torch.optim.Muon: it does the iterations in bfloat16, which is right on a GPU and five times too slow on a CPU
without bfloat16 units, where it then costs more than half of a small model's whole step. Here the format is a
parameter, and matrices of equal shape go through one batched product. In bfloat16 the update is torch's to within its
own rounding; tests/pretraining/test_muon.py compares them.

Trap: the iteration does not converge, it is tuned to lift small singular values fast; those of the result lie
between 0.7 and 1.2. That is by design, so do not test for orthogonality to many digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .distribution import part, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Matrices are stacked up to this many numbers, so that large models need no second copy of their weights.
STACK_NUMBERS = 1 << 24


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return matrices [count, rows, columns], rows <= columns, with all singular values brought near 1, in `dtype`."""
    a, b, c = COEFFICIENTS
    result = matrices.to(dtype)
    result = result / result.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = result @ result.mT
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result


class Muon(torch.optim.Optimizer):
    """Muon for matrices, its step scaled to the size of an AdamW step (0.2 x sqrt of the longer side, Liu et al. 2025).

    State per parameter: "momentum_buffer", the running average of the gradient. Raises ValueError for a parameter that
    is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update every parameter that has a gradient (closures are not supported)."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            for stack in _stacks([parameter for parameter in group["params"] if parameter.grad is not None]):
                self._update(stack, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, stack: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        directions = []
        for parameter in stack:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            direction = parameter.grad.lerp(average, momentum)  # Nesterov: one step ahead of the average
            direction = whole(direction)  # cut by FSDP, a matrix has no singular values of its own
            directions.append(direction if direction.shape[0] <= direction.shape[1] else direction.T)
        updates = orthogonalise(torch.stack(directions), self.dtype)
        size = 0.2 * max(stack[0].shape) ** 0.5
        for parameter, update in zip(stack, updates, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            update = update if parameter.shape[0] <= parameter.shape[1] else update.T
            parameter.add_(part(update, parameter), alpha=-lr * size)


def _stacks(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Group matrices of equal sides, whichever way round, into stacks of bounded size; the order stays the model's."""
    by_sides: dict[tuple[int, int], list[Tensor]] = {}
    for parameter in parameters:
        by_sides.setdefault((min(parameter.shape), max(parameter.shape)), []).append(parameter)
    stacks = []
    for (short, long), members in by_sides.items():
        count = max(1, STACK_NUMBERS // (short * long))
        stacks += [members[start : start + count] for start in range(0, len(members), count)]
    return stacks
