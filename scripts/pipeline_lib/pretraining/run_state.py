"""Everything a training run is made of, and the part of it that a checkpoint carries.

    model        weights by name
    optimizers   moments by parameter name, hyperparameters by group
    step         optimizer steps done; the learning-rate factor is a function of it
    data         how far the packed cache has been read
    random       state of every random generator
    meters       predicted tokens and wall seconds so far, best validation so far
    unwritten    the metrics line of `step` if a signal came while its validation was still running

The rest is either fixed by settings and inputs, whose digests guard the work folder, or a choice made by measurement,
which is kept in choices.json beside the checkpoints and repeated in each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline_lib.checkpoints import (
    CheckpointError,
    load_checkpoint,
    load_optimizer_state_by_name,
    newest_valid_checkpoint,
    optimizer_state_by_name,
    rng_state,
    set_rng_state,
)

from .horizon import Horizon

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Choices:
    """What was chosen by measurement at the first start; `notes` are the sentences that say so."""

    dtype: str
    compiled: bool
    threads: int
    notes: list[str]


@dataclass
class TrainingRun:
    """A run at a step; `body` is the model without its head, compiled or not.

    between_steps is False while weights and moments are being updated: only outside of that may they be saved.
    score: validation bits per byte of this very step; best_score: the lowest of all steps so far; save_soon: something
    happened in this step that a continued run could not find out again.
    """

    model: PreTrainedModel
    body: Callable[..., Any]
    optimizers: dict[str, torch.optim.Optimizer]
    horizon: Horizon
    choices: Choices
    device: torch.device
    step: int = 0
    targets: int = 0
    seconds: float = 0.0
    unwritten: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    score: float | None = None
    best_score: float | None = None
    between_steps: bool = True
    save_soon: bool = False
    random: dict[str, Any] = field(default_factory=rng_state)

    @property
    def head(self) -> torch.Tensor:
        """The output matrix [vocabulary, width]."""
        return self.model.get_output_embeddings().weight

    @property
    def compute_dtype(self) -> torch.dtype:
        """Number format of the matrix products."""
        return getattr(torch, self.choices.dtype)


def checkpoint_content(run: TrainingRun) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Return what a checkpoint of `run` holds: the live tensors by group and name, and the JSON state."""
    tensors = {"model": run.model.state_dict()}
    optimizers = {}
    for name, optimizer in run.optimizers.items():
        tensors[f"optimizer_{name}"], optimizers[name] = optimizer_state_by_name(optimizer, run.model)
    state = {
        "step": run.step,
        "data": run.data,
        "horizon": run.horizon.to_json(),
        "choices": asdict(run.choices),
        "optimizers": optimizers,
        "random": run.random,
        "targets": run.targets,
        "seconds": run.seconds,
        "unwritten": run.unwritten,
        "best_score": run.best_score,
    }
    return tensors, state


def restore_run(run: TrainingRun, folder: Path, say: Callable[[str], None]) -> Path | None:
    """Bring `run` to the newest valid checkpoint below `folder`; return it, or None when there is none.

    Raises CheckpointError when the checkpoint belongs to another horizon or its tensors do not fit.
    """
    path = newest_valid_checkpoint(folder, say)
    if path is None:
        return None
    loaded = load_checkpoint(path, verify=False)
    if loaded.state["horizon"] != run.horizon.to_json():
        raise CheckpointError(f"{path} was made for another horizon; start the stage again with --force")
    # Copied into the parameters' own storage: a tensor mapped from a file has another alignment, and with it the
    # matrix products may round differently.
    run.model.load_state_dict(loaded.tensors["model"], strict=True)
    for name, optimizer in run.optimizers.items():
        load_optimizer_state_by_name(
            optimizer, run.model, loaded.tensors[f"optimizer_{name}"], loaded.state["optimizers"][name]
        )
    run.step = loaded.step
    run.data = loaded.state["data"]
    run.targets = loaded.state["targets"]
    run.seconds = loaded.state["seconds"]
    run.unwritten = loaded.state["unwritten"]
    run.best_score = loaded.state["best_score"]
    run.random = loaded.state["random"]
    set_rng_state(run.random)
    return path
