"""Measure and probe this machine once per run: number format, attention, FP8, compiling.

Everything here asks the machine rather than a table. A CPU without bfloat16 units multiplies bfloat16 five times
slower than float32, one with them five times faster; FP8 pays for large layers and costs in small ones; compiling gains
much or nothing. What was found is kept in choices.json and read back when the run continues, because measuring again
could choose otherwise and the continuation would no longer be bit for bit.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.oom_handler import free_memory, is_out_of_memory
from pipeline_lib.stage import StageFailure

from .attention import choose_attention, use_attention
from .batches import Batch
from .choices import Choices
from .forward import TokenLoss
from .fp8 import choose_fp8
from .horizon import Horizon
from .machine import choose_dtype, measure_matmul, timed
from .meters import measure_peak

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# One compilation takes about this long on a CPU; it is tried when the run is this many times longer.
COMPILE_SECONDS = 30.0
COMPILE_PAYS_AFTER = 10.0


def choose(
    settings: PretrainSettings,
    model: PreTrainedModel,
    kernels: str,
    probe: Batch,
    horizon: Horizon,
    device: torch.device,
) -> Choices:
    """Return the choices for a run of `model`, which is on `device` and comes back as it was, apart from compiling.

    kernels: what `setup_kernel_optimizations` set up; probe: a micro-batch to measure with.
    """
    notes = [] if kernels == "none" else [f"fused kernels: {kernels}"]
    dtype = settings.dtype
    if dtype == "auto":
        speed = measure_matmul(device, probe.inputs.numel(), model.config.hidden_size)
        dtype = choose_dtype(speed)
        notes.append(f"{dtype} matrix products: {speed} on this {device.type}")
    number_format = getattr(torch, dtype)
    attention = choose_attention(settings.attention, device, number_format)
    notes.append(attention.reason)
    compiled = settings.compile == "on"
    if settings.compile == "auto":
        use_attention(model, attention.name)
        network = TokenLoss(model, attention.name, kernels, number_format)
        probe = fitting_probe(network, probe, settings.loss_chunk, device)
        compiled, verdict = compiling_pays(network, probe, settings, horizon, device)
        notes.append(verdict)
    # Who asks for float32 does not ask for eight bits.
    wanted_fp8 = "off" if settings.fp8 == "auto" and settings.dtype == "float32" else settings.fp8
    fp8 = choose_fp8(wanted_fp8, settings.fp8_recipe, model, probe.inputs.numel(), device, compiled)
    notes += fp8.notes
    return Choices(
        dtype=dtype,
        compiled=compiled,
        threads=torch.get_num_threads(),
        notes=notes,
        attention=attention.name,
        kernels=kernels,
        fp8_recipe=fp8.recipe,
        fp8_layers=fp8.layers,
        peak_flops=measure_peak(device, number_format, timed),
    )


def compiling_pays(
    network: TokenLoss, probe: Batch, settings: PretrainSettings, horizon: Horizon, device: torch.device
) -> tuple[bool, str]:
    """Say whether compiling makes this run end sooner, from the time of a step both ways, and why.

    A run too short for any gain to pay for the compiler is not compiled for the measurement either. The model is left
    uncompiled.
    """
    micro_batches = horizon.sequences / len(probe.inputs)
    eager = micro_batches * measure_micro_batch(network, probe, settings.loss_chunk, device)
    length = f"{horizon.steps:,} steps of about {eager:.3f} s"
    if eager * horizon.steps < COMPILE_PAYS_AFTER * COMPILE_SECONDS:
        return False, f"not compiled, the run is too short to win the compiling time back: {length}"
    started = time.perf_counter()
    compile_body(network.model, "single")
    first = measure_micro_batch(network, probe, settings.loss_chunk, device, warm=0, repeats=1)
    spent = time.perf_counter() - started
    compiled = micro_batches * min(first, measure_micro_batch(network, probe, settings.loss_chunk, device))
    uncompile_body(network.model)
    saved = (eager - compiled) * horizon.steps - spent
    figures = f"{eager:.3f} s a step, compiled {compiled:.3f} s after {spent:.0f} s of compiling"
    return (True, f"compiled: {figures}") if saved > 0 else (False, f"not compiled: {figures}")


def compile_body(model: PreTrainedModel, strategy: str) -> None:
    """Compile the blocks of `model` in place, all in one, or one by one where FSDP gathers each before its use."""
    if strategy == "fsdp":
        for block in model.base_model.layers:
            block.compile(dynamic=False)
    else:
        model.base_model.compile(dynamic=False)


def uncompile_body(model: PreTrainedModel) -> None:
    """Undo `compile_body`; the compiled code stays in torch's cache, so that compiling again costs little."""
    model.base_model._compiled_call_impl = None


def fitting_probe(network: TokenLoss, batch: Batch, chunk: int, device: torch.device) -> Batch:
    """Return `batch`, or the half, the quarter ... of it that a forward and backward pass has memory for.

    Raises StageFailure when not even one sequence fits.
    """
    while True:
        try:
            measure_micro_batch(network, batch, chunk, device, warm=0, repeats=1)
            return batch
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        network.zero_grad(set_to_none=True)
        free_memory()
        sequences, length = batch.inputs.shape
        if sequences == 1:
            raise StageFailure(
                f"out of memory: not even one sequence of {length:,} tokens fits; shorten pretrain.context, lower"
                " pretrain.loss_chunk or use a smaller model"
            )
        batch = next(batch.split(sequences // 2))


def measure_micro_batch(
    network: TokenLoss, batch: Batch, chunk: int, device: torch.device, warm: int = 1, repeats: int = 2
) -> float:
    """Return the seconds of a forward and backward pass, the best of `repeats` after `warm`; leaves no gradient."""
    batch = batch.to(device)

    def once() -> None:
        network(batch.inputs, batch.targets, batch.positions, batch.documents, chunk).backward()

    seconds = min([timed(once, device) for _ in range(warm + repeats)][warm:])
    network.zero_grad(set_to_none=True)
    return seconds
