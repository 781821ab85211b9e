"""Everything a training run is made of, and the part of it that a checkpoint carries.

    model        weights by name
    optimizers   moments by parameter name, hyperparameters by group
    step         optimizer steps done; the learning-rate factor is a function of it
    data         how far the packed cache has been read
    random       state of every random generator
    tokens       tokens by use so far, and wall seconds
    spikes       what ordinary steps look like
    micro_batches  how many sequences fit into memory at once, by context length
    best_score   best validation so far
    unwritten    the metrics line of `step` while it is not written: its validation was cut short, or writing failed

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
    LoadedCheckpoint,
    load_checkpoint,
    load_optimizer_state_by_name,
    newest_valid_checkpoint,
    optimizer_state_by_name,
    rng_state,
    set_rng_state,
)
from pipeline_lib.oom_handler import SafeBatchSizes
from pipeline_lib.stage import UserError

from .choices import Choices
from .distribution import Processes, alone, part, whole_by_name
from .horizon import Horizon
from .meters import TokenCounts
from .spikes import SpikeDetector

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class TrainingRun:
    """A run at a step; `network` is the model with its loss (TokenLoss), wrapped when there are several processes.

    between_steps is False while weights and moments are being updated: only outside of that may they be saved.
    block_norms: the gradient's norm by block of the last step, empty when it was not asked for; score: validation bits
    per byte of this very step; best_score: the lowest of all steps so far; save_soon: something happened in this step
    that a continued run could not find out again.
    """

    model: PreTrainedModel
    network: torch.nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    horizon: Horizon
    choices: Choices
    processes: Processes = field(default_factory=alone)
    step: int = 0
    tokens: TokenCounts = field(default_factory=TokenCounts)
    spikes: SpikeDetector = field(default_factory=lambda: SpikeDetector(None))
    micro_batches: SafeBatchSizes = field(default_factory=lambda: SafeBatchSizes(8))
    block_norms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    unwritten: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    score: float | None = None
    best_score: float | None = None
    between_steps: bool = True
    save_soon: bool = False
    random: dict[str, Any] = field(default_factory=rng_state)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.processes.device


def checkpoint_content(run: TrainingRun) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Return what a checkpoint of `run` holds: the live tensors by group and name, and the JSON state.

    With several processes all must call it, and the first one gets the tensors; with fsdp they are copies on the CPU.
    """
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
        "tokens": run.tokens.to_json(),
        "spikes": run.spikes.state(),
        "micro_batches": run.micro_batches.to_json(),
        "seconds": run.seconds,
        "unwritten": run.unwritten,
        "best_score": run.best_score,
    }
    return {group: whole_by_name(members, run.processes) for group, members in tensors.items()}, state


def restore_run(run: TrainingRun, folder: Path, say: Callable[[str], None]) -> Path | None:
    """Bring `run` to the newest valid checkpoint below `folder`; return it, or None when there is none.

    With several processes the first one chooses and all read, so the folder must be visible to all. Raises
    CheckpointError when its tensors do not fit, UserError when the horizon has been passed already.
    """
    newest = newest_valid_checkpoint(folder, say) if run.processes.first else None
    name = run.processes.share(newest.name if newest else None)
    if name is None:
        return None
    path = folder / name
    loaded = load_checkpoint(path, verify=False)
    if loaded.step > run.horizon.steps:
        raise UserError(
            f"{path} is behind the horizon of {run.horizon.steps:,} steps: raise pretrain.tokens or max_steps, or start"
            " anew with --force"
        )
    restore_state(run, loaded)
    return path


def restore_state(run: TrainingRun, loaded: LoadedCheckpoint) -> None:
    """Bring `run` to a checkpoint that was read. Raises CheckpointError when its tensors do not fit the model."""
    _check_architecture(run, loaded)
    if loaded.state["data"] and "read" not in loaded.state["data"]:
        raise CheckpointError(
            f"{loaded.path} does not say which text was read (an older version wrote it); start anew with --force"
        )
    # Copied into the parameters' own storage: a tensor mapped from a file has another alignment, and with it the
    # matrix products may round differently.
    members = run.model.state_dict()
    weights = {name: part(tensor, members[name]) for name, tensor in loaded.tensors["model"].items() if name in members}
    run.model.load_state_dict({**loaded.tensors["model"], **weights}, strict=True)
    for name, optimizer in run.optimizers.items():
        moments = {
            key: _part_of_moment(key, tensor, members) for key, tensor in loaded.tensors[f"optimizer_{name}"].items()
        }
        # The hyperparameters come from the settings, which are the checkpoint's unless the user overrides them now.
        saved = loaded.state["optimizers"][name]
        load_optimizer_state_by_name(optimizer, run.model, moments, saved, restore_hyperparameters=False)
    run.step = loaded.step
    run.data = loaded.state["data"]
    run.tokens = TokenCounts(**loaded.state["tokens"])
    run.spikes.restore(loaded.state["spikes"])
    sizes = run.micro_batches
    run.micro_batches = SafeBatchSizes(sizes.largest, sizes.grow_after, loaded.state["micro_batches"])
    run.seconds = loaded.state["seconds"]
    run.unwritten = loaded.state["unwritten"]
    run.best_score = loaded.state["best_score"]
    run.random = loaded.state["random"]
    set_rng_state(run.random)


def _check_architecture(run: TrainingRun, loaded: LoadedCheckpoint) -> None:
    """Raise CheckpointError, naming the first tensor and both shapes, for a checkpoint of another architecture."""
    wanted = {name: tuple(tensor.shape) for name, tensor in run.model.state_dict().items()}
    saved = {name: tuple(tensor.shape) for name, tensor in loaded.tensors["model"].items()}
    for name in sorted(wanted.keys() | saved.keys()):
        if wanted.get(name) != saved.get(name):
            raise CheckpointError(
                f"{loaded.path} is a checkpoint of another architecture: {name} is {saved.get(name, 'missing')} in it"
                f" and {wanted.get(name, 'missing')} in the model; restore the model, or start anew with --force"
            )


def _part_of_moment(key: str, moment: torch.Tensor, members: dict[str, torch.Tensor]) -> torch.Tensor:
    parameter = members.get(key.rsplit("/", 1)[0])
    return part(moment, parameter) if parameter is not None and parameter.shape == moment.shape else moment
