"""TRL's trainers, made to stop and continue without a trace.

What a Hugging Face trainer saves is a pickle of optimizer, scheduler and random states in a folder that counts as a
checkpoint from its first byte. `ResumableTrainer`, mixed in before a TRL trainer, replaces that by
pipeline_lib.checkpoints: safetensors and JSON, published whole, verified by digest, newest valid one first.

State = trainable parameters by name, optimizer state by name, schedule, every random generator, the trainer's
counters, tokens seen, safe micro-batches (oom_recovery.py), the last and the best validation (validations.py). The data
position needs none: the order is a function of seed and epoch (batch_order.py) and the step says how far it has been
read. Frozen weights come from the stage's input.

Why the continued run equals the uninterrupted one bit for bit: the trainer skips the batches of the current epoch
that were seen, draws the next one, and only then puts the generators back (`_load_rng_state`), exactly where they
stood when the checkpoint was taken. metrics.jsonl is cut back to the checkpoint's step and holds no times.

A validation follows its step. A checkpoint that is due, or becomes so, does not wait for it, and when a signal or a
lack of memory stops it, one is saved: such a checkpoint says that the validation is still to be done, and the next
start begins with it. If `checkpoint_seconds` have passed since, another one, which has the outcome, replaces it after
the validation. A validation leaves the generators as it found them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from pipeline_lib.checkpoints import (
    CheckpointError,
    LoadedCheckpoint,
    Retention,
    checkpoint_name,
    load_checkpoint,
    load_optimizer_state_by_name,
    newest_valid_checkpoint,
    optimizer_state_by_name,
    prune,
    rng_state,
    save_checkpoint,
    seed_everything,
    set_rng_state,
)
from pipeline_lib.config.fine_tuning import FineTuningSettings
from pipeline_lib.oom_handler import SafeBatchSizes
from pipeline_lib.stage import Stage, StageFailure, StageInterrupted, write_bytes_atomic, write_json_atomic

from .batch_order import EpochOrder
from .compact_head import score_supervised_positions_only
from .oom_recovery import ExampleTooLarge, OutOfMemoryRecovery
from .validations import LOSS, LossDiverged, Validations

Measure = Callable[[], dict[str, float]]
"""Measures the present model on the held-out examples; nothing held out, no figures."""

METRICS = "metrics.jsonl"
_NOT_METRICS = ("runtime", "per_second", "flos")


class ResumableTrainer(OutOfMemoryRecovery):
    """Mixin for a TRL trainer: `class _Trainer(ResumableTrainer, SFTTrainer)`.

    stage: where checkpoints and metrics go and who says when to stop; order: which example comes when.
    """

    def __init__(self, *arguments: Any, stage: Stage, order: EpochOrder, **keywords: Any):
        self.stage = stage
        self.order = order
        self.training: FineTuningSettings = stage.settings
        self.micro_batches = self._safe_sizes()
        self.validations = Validations(self.training)
        self._measure: Measure = dict
        self.loaded: LoadedCheckpoint | None = None
        self.bar: Any = None
        self._metrics_file: Any = None
        self._random: dict[str, Any] = {}
        self._saved_at = time.monotonic()
        self._saved_step = 0
        score_supervised_positions_only()
        super().__init__(*arguments, **keywords)
        self.remove_callback(PrinterCallback)
        self.add_callback(_StageCallback(self))

    @property
    def checkpoints(self) -> Path:
        """The folder of this stage's checkpoints; it disappears when the stage is published."""
        return self.stage.work / "checkpoints"

    def _safe_sizes(self, state: dict[str, Any] | None = None) -> SafeBatchSizes:
        """Return the sizes of a checkpoint, or to begin with a whole micro-batch, in tokens when it is packed."""
        settings = self.training
        tokens = settings.max_length if settings.batching == "pack" else 1
        return SafeBatchSizes(settings.micro_batch * tokens, state=state)

    def train_resumably(self, measure: Measure = dict) -> int:
        """Train to the last step, from the newest valid checkpoint if there is one; return the steps done now.

        measure: what a validation does, where the settings ask for some. Raises StageInterrupted after saving when a
        signal arrived, LossDiverged when the loss is not finite, ExampleTooLarge after saving when memory is too small,
        and StageFailure after saving when it is so for a validation.
        """
        steps, start, self._measure = self.args.max_steps, 0, measure
        newest = newest_valid_checkpoint(self.checkpoints, self.stage.say)
        if newest is not None:
            self.loaded = load_checkpoint(newest, verify=False)
            start = self.loaded.step
            self.validations.load(self.loaded)
            self.stage.say(f"  continuing after step {start:,} of {steps:,}")
        elif (self.stage.work / METRICS).exists():
            self.stage.say("  an earlier start ended before its first checkpoint: beginning again at step 1")
        self._open_metrics(start)
        with self._metrics_file, self.stage.progress(steps, "training", "steps") as self.bar:
            self.bar.skip(start)
            self._saved_at = time.monotonic()  # before the validation that is left to do, which is lost work too
            left_to_do = self.validations.is_due(start, steps)
            if left_to_do or start >= steps:
                self._load_from_checkpoint("")
            if left_to_do:
                self._validate(start)
            if start < steps:
                try:
                    self._train_from(start)
                except ExampleTooLarge:
                    self._save_last_step()
                    raise
        self.stage.stop_if_interrupted()
        return steps - start

    def _train_from(self, start: int) -> None:
        if self.loaded is None:
            # Whatever ran before (a first measurement, or none after a restart) must not shift the dropout masks.
            seed_everything(self.args.seed)
            self.train()
        else:
            folder = self.stage.work / "resume"  # where the trainer wants to read its counters from
            folder.mkdir(exist_ok=True)
            write_json_atomic(folder / "trainer_state.json", self.loaded.state["trainer"])
            self._total_train_tokens = self.loaded.state["tokens"]
            self._saved_step = start
            self.train(resume_from_checkpoint=str(folder))
        if not self.stage.interrupted and self.state.global_step != self.args.max_steps:
            raise StageFailure(f"training ended after step {self.state.global_step} instead of {self.args.max_steps}")

    def conclude(self) -> dict[str, Any]:
        """Put the final weights in place after training; return what they score ("after") and which step was best.

        Without validations during training the last weights are measured now.
        """
        if self.validations.every is None:
            return {"after": self._measure()}
        self.validations.put_final_weights(self._trainable())
        return self.validations.result()

    # -- validation ------------------------------------------------------------------------------------------------

    def _evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate; the trainer calls this after it has logged a step and before it saves, when the callback asks.

        What is due is saved first: a validation can take longer than all that a kill may lose.
        """
        self.control.should_evaluate = False
        if self.control.should_save:
            self._save_checkpoint(self.model, None)
        try:
            self._validate(self.state.global_step)
        except LossDiverged:
            raise
        except StageFailure:
            self._save_last_step()
            raise
        except StageInterrupted:
            if not self._last_step_is_saved():
                self._save_checkpoint(self.model, None)
            raise
        self.control.should_save = self._time_is_up()
        return {}

    def _validate(self, step: int) -> None:
        before = rng_state()
        figures = self._measure()
        set_rng_state(before)
        self.validations.record(step, figures, self._trainable())
        self._metrics_file.write(json.dumps({"step": step, **figures}) + "\n")
        self._metrics_file.flush()
        best = ", the best so far" if self.validations.best.step == step else ""
        self.stage.say(f"  step {step:,}: validation loss {figures[LOSS]:.4g}{best}")

    # -- order of the data -----------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return self.order

    # -- saving ----------------------------------------------------------------------------------------------------

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.store_flos()
        os.fsync(self._metrics_file.fileno())
        optimizer_tensors, optimizer = optimizer_state_by_name(self._plain_optimizer(), self.model)
        state = {
            "step": self.state.global_step,
            "trainer": {**dataclasses.asdict(self.state), "log_history": []},
            "scheduler": self.lr_scheduler.state_dict(),
            "optimizer": optimizer,
            "rng": self._random,
            "tokens": self._total_train_tokens,
            "micro_batches": self.micro_batches.to_json(),
            "validations": self.validations.state(),
        }
        best = self.validations.tensors(self.state.global_step)
        tensors = {"model": self._trainable(), "optimizer": optimizer_tensors, **best}
        save_checkpoint(self.checkpoints / checkpoint_name(self.state.global_step), tensors, state)
        prune(self.checkpoints, Retention(self.training.keep_checkpoints), self.state.global_step)
        self._saved_at, self._saved_step = time.monotonic(), self.state.global_step
        self.save_soon = False

    def finish_step(self) -> None:
        """Remember the random generators as they stand between two steps: a step may be given up half-way."""
        self._random = rng_state()

    def _save_last_step(self) -> None:
        """Save the state after the last whole step, unless that was done, when the step after it was given up."""
        if not self._last_step_is_saved():
            self._save_checkpoint(self.model, None)
            self.stage.say(f"  the state after step {self.state.global_step:,} was saved before the error")

    def between_batches(self) -> None:
        """Save the last step if the time for it comes within a measurement; raise StageInterrupted after a signal."""
        self.stage.stop_if_interrupted()
        if not self._last_step_is_saved() and self._time_is_up():
            self._save_checkpoint(self.model, None)

    def _last_step_is_saved(self) -> bool:
        return self.state.global_step <= self._saved_step

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it

    def checkpoint_is_due(self) -> bool:
        """Say whether time or step count ask for a checkpoint now."""
        every = self.training.checkpoint_steps
        by_steps = every is not None and self.state.global_step % every == 0
        return self.save_soon or by_steps or self._time_is_up()

    def _time_is_up(self) -> bool:
        return time.monotonic() - self._saved_at >= self.training.checkpoint_seconds

    # -- loading (the trainer calls these four, in this order) -----------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights, stored = self._trainable(), self.loaded.tensors["model"]
        if weights.keys() != stored.keys():
            strange = sorted(weights.keys() ^ stored.keys())[0]
            raise CheckpointError(f"{self.loaded.path} does not fit this model: {strange} is only on one side")
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(stored[name])
        self.micro_batches = self._safe_sizes(self.loaded.state["micro_batches"])
        self.tell_of_safe_sizes(packed=self.training.batching == "pack")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        tensors, state = self.loaded.tensors["optimizer"], self.loaded.state
        load_optimizer_state_by_name(self._plain_optimizer(), self.model, tensors, state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: float32 and bfloat16 need no gradient scaling."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        set_rng_state(self.loaded.state["rng"])

    # -- metrics ---------------------------------------------------------------------------------------------------

    def _open_metrics(self, start: int) -> None:
        """Open metrics.jsonl for appending, without the rows of steps and validations that will be done again."""
        path, validated = self.stage.work / METRICS, self.validations.last_step

        def stays(line: bytes) -> bool:
            if not line.endswith(b"\n"):
                return False
            row = json.loads(line)
            return row["step"] <= (validated if LOSS in row else start)

        kept = b""
        if path.exists():
            kept = b"".join(filter(stays, path.read_bytes().splitlines(keepends=True)))
        write_bytes_atomic(path, kept)
        self._metrics_file = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed by train_resumably

    def write_metrics(self, step: int, logs: dict[str, float]) -> None:
        """Append the row of a step. Raises LossDiverged when the loss is not finite."""
        row = {key: value for key, value in logs.items() if not any(word in key for word in _NOT_METRICS)}
        if not math.isfinite(row["loss"]):
            raise LossDiverged(
                f"the loss is {row['loss']} at step {step}; lower {self.stage.spec.section}.learning_rate (training"
                " then begins anew)"
            )
        self._metrics_file.write(json.dumps({"step": step, **row}) + "\n")
        self._metrics_file.flush()


class _StageCallback(TrainerCallback):
    """Progress, checkpoints when they are due, and a stop when a signal has arrived."""

    def __init__(self, trainer: ResumableTrainer):
        self._trainer = trainer
        self._text = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.finish_step()
        self._trainer.bar.advance(1, self._text)
        if self._trainer.stage.interrupted:
            control.should_training_stop = True
        elif self._trainer.validations.is_due(state.global_step, state.max_steps):
            control.should_evaluate = True
        finished = state.global_step >= state.max_steps  # what follows, a measurement, can be interrupted too
        if finished or self._trainer.stage.interrupted or self._trainer.checkpoint_is_due():
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self._text = f"loss {logs['loss']:.3f}"
            self._trainer.write_metrics(state.global_step, logs)
