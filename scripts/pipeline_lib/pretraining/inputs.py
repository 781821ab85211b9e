"""What stage 05 reads: the model of stage 04, the packed cache of stage 03, and the horizon that follows from both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.heavy_imports import collector_paused
from pipeline_lib.packing.open_cache import open_packed
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.stage import Stage, StageInput, UserError

from .batches import Batch, PackedData
from .horizon import Horizon, resolve_horizon

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingInputs:
    """The opened inputs of a run; parameters: counts by kind, as stage 04 reports them."""

    data: PackedData
    horizon: Horizon
    parameters: dict[str, int]
    architecture: str
    layers: int
    width: int
    attention_width: int
    model_folder: Path
    micro_batch: int

    def load_model(self) -> PreTrainedModel:
        """Load the initialised model for training: float32, own storage per parameter."""
        with collector_paused():
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging

            logging.disable_progress_bar()
            model = AutoModelForCausalLM.from_pretrained(self.model_folder, dtype=torch.float32)
        for parameter in model.parameters():
            # Weights mapped from the file have another alignment than allocated ones; products may round differently.
            parameter.data = parameter.data.clone()
        model.train()
        return model

    def probe(self) -> Batch:
        """Return one micro-batch of validation sequences to measure with."""
        return next(self.data.validation_batches(min(self.micro_batch, self.horizon.sequences)))


# Up to about four repetitions are as good as new text (Muennighoff et al. 2023).
MANY_EPOCHS = 4


def open_training_inputs(stage: Stage) -> TrainingInputs:
    """Verify and open what the earlier stages made. Raises UserError when they do not fit the settings."""
    settings = stage.settings
    (packed, cache), initial = open_packed(stage), stage.input("04_init")
    context = settings.context or cache.contexts[0]
    shape, parameters = initial.result["shape"], initial.result["parameters"]
    if shape["vocabulary"] != cache.vocab_size:
        raise UserError(
            f"the model has {shape['vocabulary']} token ids, the cache {cache.vocab_size}: make the model again with:"
            f" {initial.command}"
        )
    _require_one_tokenizer(packed, initial)
    longest = max([context, *(phase.context for phase in settings.curriculum if phase.context is not None)])
    if shape["context"] < longest:
        raise UserError(
            f"pretrain.context {longest} is longer than the model's context {shape['context']}: shorten it, or set"
            f" model.context to {longest} and run: {initial.command}"
        )
    known = known_tokens(cache, settings)
    horizon = resolve_horizon(settings, context, shape["width"], parameters["matmul"], known, shape["tied"])
    data = PackedData(
        cache, horizon.context, horizon.sequences, stage.seed, settings.validation_tokens, horizon.phases,
        settings.growing_input,
    )  # fmt: skip
    expected = cache.estimated_tokens() if cache.unfinished else 0
    epochs = horizon.tokens / expected if cache.unfinished else data.epochs(horizon.steps)
    if cache.unfinished:
        stage.say(
            f"  stage 03 is not finished: {cache.tokens():,} tokens are published, {expected:,} are expected in all,"
            f" the horizon is {horizon.steps:,} steps"
        )
        warmup = round(settings.schedule.warmup_fraction * horizon.steps)
        if data.epochs(warmup) > 1:
            stage.say(f"  the warm-up of {warmup:,} steps reads more than what is published and will wait for the rest")
    if epochs > MANY_EPOCHS:
        advice = "shorten pretrain.tokens or add text"
        stage.note(f"the horizon reads the training text {epochs:.1f} times: {advice}", lasting=False)
    if settings.full_data_tokens is not None:
        _compare_with_expectation(stage, horizon, data, cache.tokens(), settings.full_data_tokens)
    initial.file("config.json")
    weights = initial.files("model*.safetensors")
    return TrainingInputs(
        data=data,
        horizon=horizon,
        parameters=parameters,
        architecture=initial.result["architecture"],
        layers=shape["layers"],
        width=shape["width"],
        attention_width=shape["heads"] * shape["head_width"],
        model_folder=weights[0].parent,
        micro_batch=settings.micro_batch,
    )


def _require_one_tokenizer(packed: StageInput, initial: StageInput) -> None:
    """Raise UserError when the model was made for other token ids than the text was packed with, if equally many."""
    files = (packed, "tokenizer/tokenizer.json"), (initial, "tokenizer.json")
    (text, of_text), (model, of_model) = ((each.path / name, each.manifest.files[name].digest) for each, name in files)
    if of_text != of_model:
        raise UserError(
            f"the model was made for another tokenizer ({model}, {of_model}) than the text was packed with ({text},"
            f" {of_text}): make the model again with: {initial.command}"
        )


def known_tokens(cache: PackedCache, settings: PretrainSettings) -> int:
    """Return the size of the training split that `epochs` counts with; an estimate where the input may be growing."""
    return cache.estimated_tokens() if settings.growing_input else cache.tokens()


def _compare_with_expectation(stage: Stage, horizon: Horizon, data: PackedData, tokens: int, expected: int) -> None:
    """Say how much of the expected text is packed, and warn when that is less than the warm-up takes."""
    stage.note(
        f"the training text is expected to have {expected:,} tokens, {tokens:,} ({tokens / expected:.1%}) are packed:"
        f" the horizon of {horizon.steps:,} steps is that of the expected text",
        lasting=False,
    )
    warmup = round(stage.settings.schedule.warmup_fraction * horizon.steps)
    if data.epochs(warmup) > 1:
        stage.note(
            f"the warm-up of {warmup:,} steps reads more than all the text that is packed ({data.epochs(warmup):.1f}"
            " times): pack more before starting, or lower pretrain.schedule.warmup_fraction",
            lasting=False,
        )
