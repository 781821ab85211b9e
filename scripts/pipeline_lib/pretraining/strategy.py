"""How several processes share the work when the settings leave it open: copies of the model where it fits, else cuts.

ddp is faster (one exchange per step) and recovers from memory that runs out; fsdp needs memory for its share only. The
estimate of memory_estimate.py decides: weights, gradients and moments and one sequence against the memory of the
smallest device. It counts the memory a device has, not what happens to be free, so that the next start decides alike.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.memory_estimate import MemoryEstimate, estimate_memory
from pipeline_lib.stage import Stage
from pipeline_lib.stage.memory import container_limit
from pipeline_lib.stage.progress import size

from .distribution import Processes

if TYPE_CHECKING:
    from .inputs import TrainingInputs


def choose_strategy(stage: Stage, processes: Processes, inputs: TrainingInputs) -> Processes:
    """Return `processes` with a strategy that is decided, and say how; all processes must call it."""
    if processes.strategy != "auto":
        return processes
    settings: PretrainSettings = stage.settings
    if settings.device_memory_gb is not None:
        memory = round(settings.device_memory_gb * 1e9)
    else:
        memory = processes.smallest(device_memory(processes.device))
    whole = memory_needed(settings, inputs, memory, processes, shards=1)
    figures = f"{size(round(whole.held))} of weights, gradients and moments, {size(memory)} a device"
    if whole.sequences:
        stage.note(f"strategy ddp: the training state fits one device ({figures})")
        return replace(processes, strategy="ddp")
    stage.note(f"strategy fsdp: the training state and a sequence do not fit one device ({figures})")
    cut = memory_needed(settings, inputs, memory, processes, shards=processes.size)
    if not cut.sequences:
        stage.note(f"memory is expected to run out over {processes.size} processes too: {cut.reason}")
    return replace(processes, strategy="fsdp")


def memory_needed(
    settings: PretrainSettings, inputs: TrainingInputs, memory: int, processes: Processes, shards: int
) -> MemoryEstimate:
    """Return the estimate for a device of `memory` bytes when the training state is cut into `shards`."""
    wide = settings.dtype == "float32" or (settings.dtype == "auto" and processes.device.type == "cpu")
    contexts = [inputs.horizon.context, *(phase.context for phase in inputs.horizon.phases)]
    return estimate_memory(
        inputs.parameters["total"],
        memory,
        max(contexts),
        inputs.width,
        inputs.layers,
        vocabulary=inputs.data.cache.vocab_size,
        dtype_bytes=4 if wide else 2,
        weight_bytes=4,
        optimizer=settings.optimizer.name,
        shards=shards,
        loss_chunk=settings.loss_chunk,
    )


def device_memory(device: torch.device) -> int:
    """Return the memory in bytes of a GPU, or this process's share of that of the machine or its container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = container_limit()
    allowed = machine if limit is None else min(machine, limit)
    return allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
