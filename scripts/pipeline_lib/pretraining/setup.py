"""From a finished stage 04 to a training run that can take its first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from pipeline_lib.checkpoints import seed_everything
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.kernel_optimizations import (
    KernelsUnavailable,
    flash_attention_problem,
    setup_kernel_optimizations,
)
from pipeline_lib.memory_reuse import keep_freed_memory
from pipeline_lib.oom_handler import SafeBatchSizes
from pipeline_lib.stage import Stage, StageFailure, write_json_atomic
from pipeline_lib.stage.workspace import read_json

from .attention import use_attention
from .choices import Choices
from .choosing import choose, compile_body
from .distribution import Processes
from .forward import TokenLoss
from .fp8 import use_fp8
from .horizon import Horizon
from .inputs import TrainingInputs
from .machine import device_kind, timed
from .meters import measure_peak
from .optimizers import make_optimizers
from .run_state import TrainingRun
from .spikes import SpikeDetector

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare_run(stage: Stage, inputs: TrainingInputs, processes: Processes) -> TrainingRun:
    """Return the run at step 0 in the formats this machine is best at; the choices are made once per work folder."""
    settings: PretrainSettings = stage.settings
    device = processes.device
    kernels = prepare_machine(settings, inputs.architecture, device)
    model = inputs.load_model()
    if processes.strategy != "fsdp":  # which moves it block by block, each process its share
        model.to(device)
    seed_everything(stage.seed)
    threads = max(1, stage.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    horizon = inputs.horizon
    choices = _choices_of_the_first(
        stage, processes, threads, lambda: choose(settings, model, kernels, inputs.probe(), horizon, processes)
    )
    for note in choices.notes:
        stage.note(note)
    if choices.threads != threads:
        stage.note(f"goes on with the {choices.threads} threads it began with: another number rounds differently")
        torch.set_num_threads(choices.threads)
    run = equip(model, choices, settings, horizon, processes)
    seed_everything(stage.seed)
    return run


def prepare_machine(settings: PretrainSettings, architecture: str, device: torch.device) -> str:
    """Set what must be set before the model is made: exact kernels, and the fused ones that are asked for.

    Returns the name of the fused kernels, or "none". Raises StageFailure where they cannot run.
    """
    if device.type == "cuda":
        # Atomic additions in backward kernels would make a continued run differ from an uninterrupted one.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    elif device.type == "cpu":
        keep_freed_memory()
    try:
        return setup_kernel_optimizations(settings.use_liger_kernel, settings.use_cce, architecture)
    except KernelsUnavailable as error:
        switch = "use_liger_kernel" if settings.use_liger_kernel else "use_cce"
        raise StageFailure(f"pretrain.{switch} is on, but {error}") from None


def equip(
    model: PreTrainedModel, choices: Choices, settings: PretrainSettings, horizon: Horizon, processes: Processes
) -> TrainingRun:
    """Return the run of `model` at step 0 with everything that was chosen put in place: layers, code, optimizers."""
    _check_choices(choices, processes.device)
    if processes.device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=not choices.deterministic)
    dtype = getattr(torch, choices.dtype)
    use_fp8(model, choices.fp8_recipe, choices.fp8_layers, choices.fp8_emulated)
    use_attention(model, choices.attention)
    if choices.compiled:
        compile_body(model, processes.strategy)
    network = processes.wrap(TokenLoss(model, choices.attention, choices.kernels, dtype))
    optimizers = make_optimizers(model, settings.optimizer, horizon.rates, dtype)
    spikes = SpikeDetector(settings.spike_deviations)
    sizes = SafeBatchSizes(settings.micro_batch, settings.micro_batch_grows_after)
    return TrainingRun(model, network, optimizers, horizon, choices, processes, spikes=spikes, micro_batches=sizes)


def _choices_of_the_first(stage: Stage, processes: Processes, threads: int, make: Callable[[], Choices]) -> Choices:
    """Return what the first process remembers or chooses, on all of them.

    What was chosen on another kind of device cannot run on this one, or would be slow on it: it is chosen anew. With
    another number of processes each takes the `threads` that are its share of the machine now, which torch has to use.
    """
    made = None
    if processes.first:
        path, here = stage.work / "choices.json", device_kind(processes.device)
        made = read_json(path)
        if made is not None and made.get("device", "") not in ("", here):
            stage.note(
                f"goes on on {here} after {made['device']}: formats and kernels are chosen again, so this is not bit"
                " for bit the run that it would have been there"
            )
            made = None
        if made is None:
            made = asdict(make())
            write_json_atomic(path, made)
        elif made.get("processes", 0) not in (0, processes.size):
            if made["threads"] != threads:
                stage.note(
                    f"goes on on {_crew(processes.size, threads)} after {_crew(made['processes'], made['threads'])}, so"
                    " this is not bit for bit the run that it would have been there"
                )
                made["peak_flops"] = measure_peak(processes.device, getattr(torch, made["dtype"]), timed)
            made.update(processes=processes.size, threads=threads)
            write_json_atomic(path, made)
    return Choices(**processes.share(made))


def _crew(processes: int, threads: int) -> str:
    several = processes > 1
    return f"{processes} process{'es' * several} with {threads} threads{' each' * several}"


def _check_choices(choices: Choices, device: torch.device) -> None:
    """Raise StageFailure where something that was chosen is not there any more."""
    here = device_kind(device)
    if choices.device not in ("", here):
        raise StageFailure(f"its formats and kernels were chosen on {choices.device}; do it again there, not on {here}")
    if choices.attention == "flash" and (problem := flash_attention_problem()) is not None:
        raise StageFailure(
            f"the run began with the flash-attn package, which {problem}; it cannot go on bit for bit without: put it"
            " back, or begin anew with --force"
        )
