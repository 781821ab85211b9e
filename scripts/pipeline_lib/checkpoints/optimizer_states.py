"""Optimizer state keyed by parameter *name*.

torch's own `state_dict` numbers parameters by their order in the groups, so a changed group split, a reordered
model or one added parameter hands moments to the wrong tensor, often without an error. Here every moment is
stored as "<parameter name>/<state key>", hyperparameters per group beside the names they apply to, and loading
accounts for every tensor: loaded, missing, unexpected or of another shape.

The names survive wrappers: `torch.compile`'s "_orig_mod." and DistributedDataParallel's leading "module." are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .folders import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer


@dataclass
class OptimizerLoadReport:
    """What `load_optimizer_state_by_name` did, by parameter name."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """True when every parameter got its state and none was left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for label in ("missing", "unexpected", "mismatched"):
            names = getattr(self, label)
            if names:
                shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                parts.append(f"{len(names)} {label} ({shown})")
        return "; ".join(parts)


def plain_name(name: str) -> str:
    """Return a parameter name without the prefixes that compile and data-parallel wrappers add."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def optimizer_state_by_name(optimizer: Optimizer, model: Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, state) of an optimizer: tensors for a safetensors group, state as JSON.

    Tensors are "<parameter name>/<key>" (the live ones, not copies). The JSON holds the groups' hyperparameters with
    the names they apply to, the names that have state, and any state that is a number rather than a tensor. Raises
    CheckpointError when the optimizer holds a parameter that is not in `model`.
    """
    import torch

    names = _names_by_identity(model)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    groups = []
    for group in optimizer.param_groups:
        members = [_name_of(parameter, names) for parameter in group["params"]]
        groups.append({"names": members, "hyperparameters": _as_json(group)})
        for name, parameter in zip(members, group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{name}/{key}"] = value
                else:
                    numbers.setdefault(name, {})[key] = value
    return tensors, {"kind": type(optimizer).__name__, "groups": groups, "numbers": numbers}


def load_optimizer_state_by_name(
    optimizer: Optimizer,
    model: Module,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    *,
    strict: bool = True,
    restore_hyperparameters: bool = True,
) -> OptimizerLoadReport:
    """Give each parameter of `optimizer` the moments stored under its name and return what happened.

    `restore_hyperparameters` also puts back learning rate, betas, weight decay ... of the group a parameter was in;
    pass False to let the optimizer's present settings win. With `strict`, a parameter without state, a left-over state
    or another shape raises CheckpointError before anything is changed. A checkpoint of an optimizer that had not
    stepped yet holds no moments; every parameter then counts as loaded.
    """
    stored = _collect(tensors, state)
    names = _names_by_identity(model)
    members = {_name_of(p, names): (p, group) for group in optimizer.param_groups for p in group["params"]}
    report = _compare(members, stored, state)
    if strict and not report.exact:
        raise CheckpointError(f"the optimizer state does not fit this model: {report}")
    for name in report.loaded:
        parameter, group = members[name]
        if stored.get(name):
            optimizer.state[parameter] = {k: _place(k, v, parameter, group) for k, v in stored[name].items()}
    if restore_hyperparameters:
        _restore_hyperparameters(optimizer, names, state)
    return report


def _collect(tensors: dict[str, Tensor], state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {parameter name: {state key: tensor or number}}."""
    stored: dict[str, dict[str, Any]] = {name: {} for group in state["groups"] for name in group["names"]}
    for full, tensor in tensors.items():
        name, key = full.rsplit("/", 1)
        stored.setdefault(name, {})[key] = tensor
    for name, numbers in state["numbers"].items():
        stored.setdefault(name, {}).update(numbers)
    return stored


def _compare(members: dict, stored: dict, state: dict[str, Any]) -> OptimizerLoadReport:
    report = OptimizerLoadReport(unexpected=sorted(set(stored) - set(members)))
    for name, (parameter, _) in members.items():
        if name not in stored:
            report.missing.append(name)
        elif any(_wrong_shape(key, value, parameter) for key, value in stored[name].items()):
            report.mismatched.append(name)
        else:
            report.loaded.append(name)
    return report


# Moments that mirror their parameter in torch's own optimizers; others (bitsandbytes' blocks) have their own shapes.
_MIRRORS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}


def _wrong_shape(key: str, value: Any, parameter: Tensor) -> bool:
    return key in _MIRRORS and hasattr(value, "shape") and value.shape != parameter.shape


def _place(key: str, value: Any, parameter: Tensor, group: dict[str, Any]) -> Any:
    """Move a state tensor to where the optimizer expects it: AdamW keeps its step counter on the CPU unless fused."""
    if not hasattr(value, "device"):
        return value
    if key == "step":
        on_device = group.get("fused") or group.get("capturable")
        return value.clone().to(parameter.device if on_device else "cpu")
    return value.clone().to(parameter.device)


def _restore_hyperparameters(optimizer: Optimizer, names: dict[int, str], state: dict[str, Any]) -> None:
    saved = {name: group["hyperparameters"] for group in state["groups"] for name in group["names"]}
    for group in optimizer.param_groups:
        sources = [saved[name] for p in group["params"] if (name := _name_of(p, names)) in saved]
        if not sources:
            continue
        if any(source != sources[0] for source in sources):
            raise CheckpointError("one parameter group holds parameters that were saved with different hyperparameters")
        for key, value in sources[0].items():
            group[key] = tuple(value) if isinstance(value, list) else value


def _as_json(group: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a group; a tensor learning rate becomes a number."""
    result = {}
    for key, value in group.items():
        if key in ("params", "param_names"):
            continue
        if isinstance(value, tuple):
            value = list(value)
        if hasattr(value, "item"):
            value = value.item()
        result[key] = value
    return result


def _names_by_identity(model: Module) -> dict[int, str]:
    return {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}


def _name_of(parameter: Tensor, names: dict[int, str]) -> str:
    name = names.get(id(parameter))
    if name is None:
        shape = "x".join(map(str, parameter.shape))
        raise CheckpointError(f"the optimizer holds a parameter ({shape}) that is not in the model")
    return name
