"""The optimizers of a run: which parameter belongs to which group, and how the groups' learning rates move together.

    matrices of the blocks   muon, adamw or adamw_8bit; `lr`, weight decay
    input embedding          adamw; `embedding_lr`, no decay (a decayed row is a token forgotten because it is rare)
    head                     adamw, or adamw_8bit with it; `head_lr`, no decay
    norms                    adamw; `head_lr`, no decay

Muon (muon.py) needs half of AdamW's memory and a few small matrix products per step; its step is scaled to the size
of an AdamW step, so learning rates have one meaning. 8-bit AdamW (Dettmers et al. 2022) keeps both moments in a byte
each, with one scale per block of 256 numbers: 2 bytes per parameter instead of 8. The embedding keeps full moments, as
that paper advises: the rows of rare tokens have gradients of very different sizes in one block.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from pipeline_lib.config.pretrain import OptimizerSettings
from pipeline_lib.stage import StageFailure

from .horizon import LearningRates
from .muon import Muon

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEAK = "peak_lr"  # the group's learning rate at factor 1, kept in the group so that it is saved with it


def parameter_groups(model: PreTrainedModel) -> dict[str, list[torch.nn.Parameter]]:
    """Return {"matrices", "embedding", "head", "norms"}: every parameter once, in the model's order.

    A head tied to the embedding is the embedding; its own group is then empty.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    groups: dict[str, list[torch.nn.Parameter]] = {"matrices": [], "embedding": [], "head": [], "norms": []}
    for parameter in model.parameters():
        if parameter is embedding:
            groups["embedding"].append(parameter)
        elif parameter is head:
            groups["head"].append(parameter)
        elif parameter.ndim < 2:
            groups["norms"].append(parameter)
        else:
            groups["matrices"].append(parameter)
    return groups


def make_optimizers(
    model: PreTrainedModel, settings: OptimizerSettings, rates: LearningRates, dtype: torch.dtype
) -> dict[str, torch.optim.Optimizer]:
    """Return the run's optimizers at their peak learning rates: "adamw" and, if asked for, "muon" or "adamw_8bit".

    dtype: number format of Muon's matrix products. Raises StageFailure where 8-bit AdamW cannot run.
    """
    groups = parameter_groups(model)
    matrices = {"params": groups["matrices"], "lr": rates.matrices, "weight_decay": settings.weight_decay or 0.0}
    embedding = {"params": groups["embedding"], "lr": rates.embedding, "weight_decay": 0.0}
    head = {"params": groups["head"], "lr": rates.head, "weight_decay": 0.0}
    norms = {"params": groups["norms"], "lr": rates.head, "weight_decay": 0.0}
    adamw = {"betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    rest = [embedding, head, norms]
    if settings.name == "muon":
        optimizers["muon"] = Muon([matrices], lr=rates.matrices, momentum=settings.momentum, dtype=dtype)
    elif settings.name == "adamw_8bit":
        optimizers["adamw_8bit"] = _adamw_8bit([group for group in (matrices, head) if group["params"]], adamw)
        rest = [embedding, norms]
    else:
        rest.insert(0, matrices)
    optimizers["adamw"] = torch.optim.AdamW([group for group in rest if group["params"]], fused=True, **adamw)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group[PEAK] = group["lr"]
    return optimizers


def _adamw_8bit(groups: list[dict[str, Any]], hyperparameters: dict[str, Any]) -> torch.optim.Optimizer:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise StageFailure("optimizer.name adamw_8bit needs bitsandbytes: pip install bitsandbytes")
    if any(hasattr(parameter, "full_tensor") for group in groups for parameter in group["params"]):
        raise StageFailure("optimizer.name adamw_8bit cannot work on tensors cut by FSDP; use strategy ddp, or muon")
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, **hyperparameters)


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group to its peak learning rate times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group[PEAK] * factor


def set_momentum(optimizers: Iterable[torch.optim.Optimizer], momentum: float) -> None:
    """Set the momentum of every group that has one, which are Muon's."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if "momentum" in group:
                group["momentum"] = momentum
