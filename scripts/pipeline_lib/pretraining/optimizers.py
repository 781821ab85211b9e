"""The optimizers of a run: which parameter belongs to which group, and how the groups' learning rates move together.

    matrices of the blocks   Muon or AdamW, `lr`, weight decay
    input embedding          AdamW, `embedding_lr`, no decay (a decayed row is a token forgotten because it is rare)
    head and norms           AdamW, `head_lr`, no decay

Muon (muon.py) needs half of AdamW's memory and a few small matrix products per step; its step is scaled to the size
of an AdamW step, so learning rates have one meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from pipeline_lib.config.pretrain import OptimizerSettings

from .horizon import LearningRates
from .muon import Muon

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEAK = "peak_lr"  # the group's learning rate at factor 1, kept in the group so that it is saved with it


def parameter_groups(model: PreTrainedModel) -> dict[str, list[torch.nn.Parameter]]:
    """Return {"matrices", "embedding", "head_and_norms"}: every parameter once, in the model's order."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    groups: dict[str, list[torch.nn.Parameter]] = {"matrices": [], "embedding": [], "head_and_norms": []}
    for parameter in model.parameters():
        if parameter is embedding:
            groups["embedding"].append(parameter)
        elif parameter is head or parameter.ndim < 2:
            groups["head_and_norms"].append(parameter)
        else:
            groups["matrices"].append(parameter)
    return groups


def make_optimizers(
    model: PreTrainedModel, settings: OptimizerSettings, rates: LearningRates, dtype: torch.dtype
) -> dict[str, torch.optim.Optimizer]:
    """Return the run's optimizers by name ("muon" and "adamw", or "adamw" alone) at their peak learning rates.

    dtype: number format of Muon's matrix products.
    """
    groups = parameter_groups(model)
    decay = settings.weight_decay or 0.0
    matrices: dict[str, Any] = {"params": groups["matrices"], "lr": rates.matrices, "weight_decay": decay}
    adamw_groups = [
        {"params": groups["embedding"], "lr": rates.embedding, "weight_decay": 0.0},
        {"params": groups["head_and_norms"], "lr": rates.head, "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if settings.name == "muon":
        optimizers["muon"] = Muon([matrices], lr=rates.matrices, momentum=settings.momentum, dtype=dtype)
    else:
        adamw_groups.insert(0, matrices)
    optimizers["adamw"] = torch.optim.AdamW(
        adamw_groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group[PEAK] = group["lr"]
    return optimizers


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group to its peak learning rate times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group[PEAK] * factor
