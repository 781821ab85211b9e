"""From a finished stage 04 to a training run that can take its first step."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline_lib.checkpoints import seed_everything
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.stage import Stage, write_json_atomic
from pipeline_lib.stage.workspace import read_json

from .batches import Batch
from .forward import summed_loss
from .horizon import Horizon
from .machine import choose_device, choose_dtype, compiling_pays, measure_matmul, timed
from .optimizers import make_optimizers
from .run_state import Choices, TrainingRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(folder: Path) -> PreTrainedModel:
    """Load a Hugging Face model directory for training: float32, attention through SDPA, own storage per parameter."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    for parameter in model.parameters():
        # Weights mapped from the file have another alignment than allocated ones, and products may round differently.
        parameter.data = parameter.data.clone()
    model.train()
    return model


def prepare_run(stage: Stage, model: PreTrainedModel, horizon: Horizon, probe: Batch) -> TrainingRun:
    """Return the run at step 0 in the formats this machine is best at; the choices are made once per work folder.

    `probe` is a micro-batch to measure with.
    """
    settings: PretrainSettings = stage.settings
    device = choose_device()
    if device.type == "cuda":
        # Atomic additions in backward kernels would make a continued run differ from an uninterrupted one.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    model.to(device)
    seed_everything(stage.seed)
    torch.set_num_threads(stage.threads)
    eager = TrainingRun(model, model.base_model, {}, horizon, Choices("float32", False, 1, []), device)
    choices = _remembered_choices(stage.work / "choices.json") or _choose(stage, eager, probe)
    write_json_atomic(stage.work / "choices.json", asdict(choices))
    for note in choices.notes:
        stage.note(note)
    if choices.threads != stage.threads:
        stage.note(f"goes on with the {choices.threads} threads it began with: another number rounds differently")
        torch.set_num_threads(choices.threads)
    body: Any = torch.compile(model.base_model, dynamic=False) if choices.compiled else model.base_model
    optimizers = make_optimizers(model, settings.optimizer, horizon.rates, getattr(torch, choices.dtype))
    seed_everything(stage.seed)
    return TrainingRun(model, body, optimizers, horizon, choices, device)


def _remembered_choices(path: Path) -> Choices | None:
    value = read_json(path)
    return Choices(**value) if value is not None else None


def _choose(stage: Stage, run: TrainingRun, probe: Batch) -> Choices:
    settings: PretrainSettings = stage.settings
    notes = []
    dtype = settings.dtype
    if dtype == "auto":
        speed = measure_matmul(run.device, probe.inputs.numel(), run.head.shape[1])
        dtype = choose_dtype(speed)
        notes.append(f"{dtype} matrix products: {speed} on this {run.device.type}")
    compiled = settings.compile == "on"
    if settings.compile == "auto":
        run.choices = Choices(dtype, False, stage.threads, [])
        seconds = measure_micro_batch(run, probe, settings.loss_chunk) * run.horizon.sequences / len(probe.inputs)
        compiled = compiling_pays(seconds, run.horizon.steps)
        verdict = "compiled" if compiled else "not compiled, the run is too short to win the compiling time back"
        notes.append(f"{verdict}: {run.horizon.steps:,} steps of about {seconds:.3f} s")
    return Choices(dtype, compiled, stage.threads, notes)


def measure_micro_batch(run: TrainingRun, batch: Batch, chunk: int) -> float:
    """Return the seconds of a forward and backward pass, the better of two after one to warm up; leaves no gradient."""
    batch = batch.to(run.device)

    def once() -> None:
        summed_loss(run, batch, chunk).backward()

    seconds = min([timed(once, run.device) for _ in range(3)][1:])
    run.model.zero_grad(set_to_none=True)
    return seconds
