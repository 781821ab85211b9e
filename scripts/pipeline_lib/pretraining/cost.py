"""`--plan`: the expected time, memory and disk of a run, from a few micro-batches of real data on this machine."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import torch

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.stage import Estimate

from .machine import choose_device, choose_dtype, measure_matmul
from .run_state import Choices, TrainingRun
from .setup import measure_micro_batch

if TYPE_CHECKING:
    from .inputs import TrainingInputs


def expected_cost(settings: PretrainSettings, threads: int, inputs: TrainingInputs) -> Estimate:
    """Time one micro-batch and multiply; compiling, validation and checkpoints are not counted."""
    torch.set_num_threads(threads)
    device = choose_device()
    model = inputs.load_model().to(device)
    probe = inputs.probe()
    dtype = settings.dtype
    if dtype == "auto":
        dtype = choose_dtype(measure_matmul(device, probe.inputs.numel(), model.config.hidden_size))
    run = TrainingRun(model, model.base_model, {}, inputs.horizon, Choices(dtype, False, threads, []), device)
    seconds = measure_micro_batch(run, probe, settings.loss_chunk)
    horizon = inputs.horizon
    total = seconds / len(probe.inputs) * horizon.sequences * horizon.steps
    parameters = inputs.parameters["total"]
    moments = 2 if settings.optimizer.name == "adamw" else 1
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) + 4 * moments * parameters
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 4 * moments * parameters
    disk = 4 * parameters * (1 + settings.keep_checkpoints * (1 + moments))
    basis = (
        f"{horizon.steps:,} steps of {horizon.step_tokens:,} tokens; {len(probe.inputs)} sequences took"
        f" {seconds:.3f} s in {dtype}, not compiled"
    )
    return Estimate(total, memory, disk, basis)
