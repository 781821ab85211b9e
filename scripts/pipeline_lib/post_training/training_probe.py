"""The probe behind `--plan` of stages 07, 09 and 10: a few real steps on the real model, extrapolated.

The passes are those of training: on its device, in its number format, with its activation checkpointing. The memory is
that of the GPU where training uses one, and of this process otherwise.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from pipeline_lib.config.fine_tuning import FineTuningSettings
from pipeline_lib.oom_handler import is_out_of_memory
from pipeline_lib.pretraining.machine import choose_device, timed
from pipeline_lib.stage import Estimate, Stage, StageFailure
from pipeline_lib.stage.memory import own_peak_bytes
from pipeline_lib.stage.progress import size

from .training_setup import check_context, horizon, load_model, matmul_dtype, prepare_libraries
from .validations import check_held_out

_LIBRARIES_SECONDS = 8.0
"""Importing TRL, and loading and saving a small model."""

_TIMED_STEPS = 2

_FORWARD_SHARE = 1 / 3
"""Time of a forward pass, as a share of a forward and backward one."""


def estimate_training(
    stage: Stage,
    model_folder: Path,
    examples: int,
    mean_tokens: float,
    sequences: int,
    forward_share: float = 0.0,
    adapters: bool = False,
    held_out: int = 0,
) -> Estimate:
    """Time forward and backward passes of one micro-batch and extrapolate to all steps.

    examples: how many there are; mean_tokens: of one sequence, before packing; sequences: per example (2 for pairs);
    forward_share: further forward passes per step, as a share of a whole step (the reference model of DPO); adapters:
    whether these are trained, on the frozen model, and merged into it afterwards; held_out: examples for validations
    during training. Raises StageFailure when memory runs out, and UserError when validation is asked for and nothing is
    held out.
    """
    check_held_out(stage, held_out)
    prepare_libraries(stage)
    settings = stage.settings
    dtype = matmul_dtype(settings, stage)
    if adapters:
        from .adapters import load_adapted  # with TRL, which must be imported after prepare_libraries

    before = _peak_bytes()
    model = load_adapted(model_folder, settings, dtype) if adapters else load_model(model_folder)
    check_context(model, settings, stage.spec.section)
    rows = settings.micro_batch * sequences
    length = conversation = max(2, min(round(mean_tokens), settings.max_length))
    if settings.batching == "pack":
        # As if no sequence had padding: how the lengths fit together is known only after all are tokenised.
        examples, length = math.ceil(examples * min(mean_tokens / settings.max_length, 1.0)), settings.max_length
    try:
        passes = TrainingPasses(model, settings, dtype, conversation)
        seconds = passes.seconds(rows, length) * (1 + forward_share)
        peak = passes.peak_bytes(rows, settings.max_length)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageFailure(
            f"out of memory with micro-batches of {rows:,} x {settings.max_length:,} tokens, which training would cut"
            f" into halves; lower {stage.spec.section}.micro_batch or max_length, or switch activation_checkpointing on"
        ) from None
    steps = horizon(examples, settings).steps
    every, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
    held_out_passes, told = 0, ""
    if settings.eval_steps is not None:
        validations, measured = math.ceil(steps / settings.eval_steps), min(held_out, settings.val_examples)
        told = f"; {validations:,} validations of {measured:,} example{'s' * (measured != 1)}"
        held_out_passes = validations * math.ceil(measured / settings.micro_batch)
    share = f"; {trained:,} of {every:,} parameters are trained" if adapters else ""
    held_out_seconds = held_out_passes * _FORWARD_SHARE * seconds * conversation / length  # which are never packed
    best = 4 * trained if settings.keep_best else 0
    in_host_memory = best if passes.device.type == "cpu" else 0
    if best and not in_host_memory:
        told += f"; keep_best takes {size(best)} of host memory"
    return Estimate(
        seconds=_LIBRARIES_SECONDS + steps * settings.accumulation * seconds + held_out_seconds,
        # Adam keeps two moments of what is trained; after that, a merge holds the whole model in float32.
        memory_bytes=max(peak + 2 * 4 * trained + in_host_memory, before + 4 * every),
        disk_bytes=4 * every + (3 * 4 * trained + best) * (settings.keep_checkpoints + 1),
        basis=f"{steps:,} steps; micro-batches of {rows} x {length} tokens took {seconds:.2f} s each on"
        f" {passes.device.type} in {dtype}{share}{told}",
    )


def _peak_bytes() -> int:
    """Return the peak of the GPU where training uses one, and of this process otherwise."""
    return torch.cuda.max_memory_allocated() if choose_device().type == "cuda" else own_peak_bytes()


class TrainingPasses:
    """Forward and backward passes as the trainer makes them, without an update."""

    def __init__(self, model: torch.nn.Module, settings: FineTuningSettings, dtype: str, conversation: int = 0):
        """dtype: of the matrix products, float32 or bfloat16; the weights stay in float32.

        conversation: tokens of each conversation of a packed sequence; used with batching "pack" only.
        """
        self.device = choose_device()
        self._conversation = conversation if settings.batching == "pack" else 0
        self._model = model.to(self.device).train()
        self._lower_precision = dtype == "bfloat16"
        if settings.activation_checkpointing:
            self._model.activation_checkpointing_enable()

    def seconds(self, rows: int, length: int) -> float:
        """Return the mean time of a pass over random tokens [rows, length], the device waited for."""
        times = [timed(lambda: self.run(rows, length), self.device) for _ in range(1 + _TIMED_STEPS)]
        return sum(times[1:]) / _TIMED_STEPS  # the first one also warms up

    def peak_bytes(self, rows: int, length: int) -> int:
        """Return the peak of the GPU, or of this process, in bytes, after one more pass with TRL in memory."""
        from trl import DPOTrainer, SFTTrainer  # noqa: F401 for the memory that their libraries take

        self.run(rows, length)
        return _peak_bytes()

    def run(self, rows: int, length: int) -> None:
        """Do one pass over random tokens [rows, length]; packed ones lie in a single row [1, rows * length].

        So does TRL's collator, and the positions, which restart with every conversation, make an attention mask of the
        square of that row.
        """
        ids = torch.randint(self._model.config.vocab_size, (rows, length), device=self.device)
        inputs = {"input_ids": ids}
        if self._conversation:
            positions = (torch.arange(length, device=self.device) % self._conversation).expand(rows, length)
            inputs = {"input_ids": ids.reshape(1, -1), "position_ids": positions.reshape(1, -1)}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._lower_precision):
            loss = self._model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
        loss.backward()
        self._model.zero_grad(set_to_none=True)
