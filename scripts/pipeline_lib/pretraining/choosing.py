"""Measure and probe this machine once per run: number format, attention, FP8, compiling.

Everything here asks the machine rather than a table. A CPU without bfloat16 units multiplies bfloat16 five times
slower than float32, one with them five times faster; FP8 pays for large layers and costs in small ones; compiling gains
much or nothing. What was found is kept in choices.json and read back when the run continues, because measuring again
could choose otherwise and the continuation would no longer be bit for bit. On another kind of device it is chosen anew.

With fsdp the probe must not put the uncut model on one device: that it does not fit there is why it is cut. So nothing
is tried out on the whole model then, and the notes say what was left at its safe value.
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
from .distribution import Processes
from .forward import TokenLoss
from .fp8 import choose_fp8
from .horizon import Horizon
from .machine import choose_dtype, device_kind, measure_matmul, timed
from .meters import measure_peak

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# One compilation takes about this long on a CPU; it is tried when the run is this many times longer.
COMPILE_SECONDS = 30.0
COMPILE_PAYS_AFTER = 10.0
MOST_VERSIONS = 256
# Seconds at the measured peak, half of which a real pass reaches: a micro-batch that takes longer is timed in part.
SLOW_PASS = 1.5
FLOPS_PER_PARAMETER = 6


def choose(
    settings: PretrainSettings,
    model: PreTrainedModel,
    kernels: str,
    probe: Batch,
    horizon: Horizon,
    processes: Processes,
) -> Choices:
    """Return the choices for a run of `model`, which comes back as it was.

    The model is on the device of `processes`, or with fsdp anywhere: it is not run then. kernels: what
    `setup_kernel_optimizations` set up; probe: a micro-batch to measure with.
    """
    device, whole = processes.device, processes.strategy != "fsdp"
    notes = [] if kernels == "none" else [f"fused kernels: {kernels}"]
    dtype = settings.dtype
    if dtype == "auto":
        speed = measure_matmul(device, probe.inputs.numel(), model.config.hidden_size)
        dtype = choose_dtype(speed)
        notes.append(f"{dtype} matrix products: {speed} on this {device.type}")
    number_format = getattr(torch, dtype)
    attention = choose_attention(settings.attention, device, number_format)
    notes.append(attention.reason)
    peak = measure_peak(device, number_format, timed)
    rows = probe.inputs.numel()
    probe, slow = timing_piece(probe, matmul_parameters(model), peak)
    compiled, deterministic = settings.compile == "on", True
    if whole and (settings.compile == "auto" or device.type == "cuda"):
        use_attention(model, attention.name)
        network = TokenLoss(model, attention.name, kernels, number_format)
        probe, first = fitting_probe(network, probe, settings.loss_chunk, device)
        rows = rows if slow else probe.inputs.numel()
        if device.type == "cuda":
            deterministic, verdict = has_deterministic_kernels(network, probe, settings.loss_chunk, device)
            notes += [verdict] if verdict else []
        if settings.compile == "auto":
            compiled, verdict = compiling_pays(network, probe, settings, horizon, device, first if slow else None)
            notes.append(verdict)
    if not whole and settings.compile == "auto":
        notes.append("not compiled: fsdp cuts the model, so it was not timed; pretrain.compile: on compiles its blocks")
    if not whole and device.type == "cuda":
        deterministic = False
        notes.append(
            "kernels without a deterministic form are allowed: fsdp cuts the model, so they were not looked for"
        )
    # Who asks for float32 does not ask for eight bits.
    wanted_fp8 = "off" if settings.fp8 == "auto" and settings.dtype == "float32" else settings.fp8
    contexts = [phase.context for phase in horizon.phases] or [horizon.context]
    fp8 = choose_fp8(wanted_fp8, settings.fp8_recipe, model, rows, contexts, device, compiled)
    notes += fp8.notes
    return Choices(
        dtype=dtype,
        compiled=compiled,
        processes=processes.size,
        threads=torch.get_num_threads(),
        notes=notes,
        attention=attention.name,
        kernels=kernels,
        fp8_recipe=fp8.recipe,
        fp8_layers=fp8.layers,
        fp8_emulated=wanted_fp8 == "emulate",
        deterministic=deterministic,
        device=device_kind(device),
        peak_flops=peak,
    )


def has_deterministic_kernels(
    network: TokenLoss, probe: Batch, chunk: int, device: torch.device
) -> tuple[bool, str | None]:
    """Say whether a forward and backward pass has a deterministic kernel for everything; if not, what it lacks.

    Without them the last bits of a gradient depend on the order of atomic additions, and a run that continues is not
    bit for bit the one that was not interrupted. PyTorch's own attention takes its deterministic backward pass only in
    the strict mode that is tried here (`warn_only=True` keeps the other one).
    """
    torch.use_deterministic_algorithms(True)
    try:
        measure_micro_batch(network, probe, chunk, device, warm=0, repeats=1)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        network.zero_grad(set_to_none=True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        return False, f"a continued run can differ in the last bits: {str(error).splitlines()[0]}"
    return True, None


def compiling_pays(
    network: TokenLoss,
    probe: Batch,
    settings: PretrainSettings,
    horizon: Horizon,
    device: torch.device,
    slow_pass: float | None = None,
) -> tuple[bool, str]:
    """Say whether compiling makes this run end sooner, from the time of a step both ways, and why.

    A run too short for any gain to pay for the compiler is not compiled for the measurement either. slow_pass: the
    seconds of the first pass of `probe`, where passes take too long for many. The model is left uncompiled.
    """
    micro_batches = horizon.sequences / len(probe.inputs)
    times = {} if slow_pass is None else {"warm": 0, "repeats": 1}
    eager_pass = measure_micro_batch(network, probe, settings.loss_chunk, device, **times)
    # Both ways the better of two: a first pass also pays for memory and kernels that it is the first to ask for.
    eager = micro_batches * (eager_pass if slow_pass is None else min(slow_pass, eager_pass))
    steps = horizon.tokens / horizon.step_tokens  # of the last batch size, for a schedule of them
    length = f"{steps:,.0f} steps of about {eager:.3f} s"
    if eager * steps < COMPILE_PAYS_AFTER * COMPILE_SECONDS:
        return False, f"not compiled, the run is too short to win the compiling time back: {length}"
    started = time.perf_counter()
    compile_body(network.model, "single")
    first = measure_micro_batch(network, probe, settings.loss_chunk, device, warm=0, repeats=1)
    spent = time.perf_counter() - started
    compiled = micro_batches * min(first, measure_micro_batch(network, probe, settings.loss_chunk, device, **times))
    uncompile_body(network.model)
    saved = (eager - compiled) * steps - spent
    figures = f"{eager:.3f} s a step, compiled {compiled:.3f} s after {spent:.0f} s of compiling"
    return (True, f"compiled: {figures}") if saved > 0 else (False, f"not compiled: {figures}")


def compile_body(model: PreTrainedModel, strategy: str) -> None:
    """Compile the blocks of `model` in place, all in one, or one by one where FSDP gathers each before its use.

    Each size of a micro-batch, each context length, training and validation, and each number of places for documents
    is a version of its own; torch's limit of 8 would run the ninth uncompiled, and which one that is depends on the
    order in which this process met them.
    """
    torch._dynamo.config.recompile_limit = MOST_VERSIONS
    torch._dynamo.config.accumulated_recompile_limit = 4 * MOST_VERSIONS
    if strategy == "fsdp":
        for block in model.base_model.layers:
            block.compile(dynamic=False)
    else:
        model.base_model.compile(dynamic=False)


def uncompile_body(model: PreTrainedModel) -> None:
    """Undo `compile_body`; the compiled code stays in torch's cache, so that compiling again costs little."""
    model.base_model._compiled_call_impl = None


def matmul_parameters(model: PreTrainedModel) -> int:
    """Return how many parameters every token is multiplied with: the matrices, without a table that is looked up."""
    table = model.get_input_embeddings().weight
    looked_up = 0 if model.get_output_embeddings().weight is table else table.numel()
    return sum(weight.numel() for weight in model.parameters() if weight.ndim == 2) - looked_up


def timing_piece(probe: Batch, parameters: int, peak_flops: float) -> tuple[Batch, bool]:
    """Return what to time of a micro-batch, and whether a pass of all of it would be slow.

    Of a slow one it is as many whole sequences as are not, or one; their time goes with their number. parameters: those
    of the matrix products; peak_flops: see Choices, 0 where it is not known, and then nothing is slow.
    """
    sequences, length = probe.inputs.shape
    seconds = FLOPS_PER_PARAMETER * parameters * length / peak_flops if peak_flops else 0.0
    if sequences * seconds <= SLOW_PASS:
        return probe, False
    return next(probe.split(max(1, int(SLOW_PASS / seconds)))), True


def fitting_probe(network: TokenLoss, batch: Batch, chunk: int, device: torch.device) -> tuple[Batch, float]:
    """Return `batch`, or the half, the quarter ... of it that a forward and backward pass has memory for, and its time.

    Raises StageFailure when not even one sequence fits.
    """
    while True:
        try:
            return batch, measure_micro_batch(network, batch, chunk, device, warm=0, repeats=1)
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
