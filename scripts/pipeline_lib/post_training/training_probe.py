"""The probe behind `--plan` of stages 07, 09 and 10: a few real steps on the real model, extrapolated."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pipeline_lib.stage import Estimate, Stage
from pipeline_lib.stage.memory import own_peak_bytes

from .training_setup import check_context, horizon, load_model, prepare_libraries

_LIBRARIES_SECONDS = 8.0
"""Importing TRL, and loading and saving a small model."""

_TIMED_STEPS = 2


def estimate_training(
    stage: Stage, model_folder: Path, examples: int, mean_tokens: float, sequences: int, forward_share: float = 0.0
) -> Estimate:
    """Time forward and backward passes of one micro-batch and extrapolate to all steps.

    examples: how many there are; mean_tokens: of one sequence; sequences: per example (2 for pairs); forward_share:
    further forward passes per step, as a share of a whole step (the reference model of DPO).
    """
    prepare_libraries(stage)
    settings = stage.settings
    model = load_model(model_folder)
    check_context(model, settings, stage.spec.section)
    length = max(2, min(round(mean_tokens), settings.max_length))
    ids = torch.randint(model.config.vocab_size, (settings.micro_batch * sequences, length))
    seconds = _seconds_per_micro_batch(model, ids) * (1 + forward_share)
    steps = horizon(examples, settings).steps
    weights = sum(weight.numel() * 4 for weight in model.parameters())
    longest = torch.randint(model.config.vocab_size, (settings.micro_batch * sequences, settings.max_length))
    peak = _peak_of_one_pass(model, longest)
    return Estimate(
        seconds=_LIBRARIES_SECONDS + steps * settings.accumulation * seconds,
        memory_bytes=peak + 2 * weights,
        disk_bytes=weights * (1 + 3 * (settings.keep_checkpoints + 1)),
        basis=f"{steps:,} steps; micro-batches of {len(ids)} x {length} tokens took {seconds:.2f} s each",
    )


def _peak_of_one_pass(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """Return the peak of this process, in bytes, after a pass over the longest micro-batch with TRL in memory."""
    from trl import DPOTrainer, SFTTrainer  # noqa: F401 for the memory that their libraries take

    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)
    return own_peak_bytes()


def _seconds_per_micro_batch(model: torch.nn.Module, ids: torch.Tensor) -> float:
    model.train()
    times = []
    for _ in range(1 + _TIMED_STEPS):  # the first one also warms up
        started = time.monotonic()
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad(set_to_none=True)
        times.append(time.monotonic() - started)
    return sum(times[1:]) / _TIMED_STEPS
