"""The training loop.

    train            steps until the horizon; after each one a metrics line, and a checkpoint when one is due
    optimizer_step   forward and backward over micro-batches, clip, update

What makes it exact: a step depends only on the weights, the moments, the place in the data and its own number (which
gives the learning rate), and a checkpoint is only ever taken between two steps. A run that is killed loses the steps
since its last checkpoint, does them again, and proves that it does the same thing: the first of them has left its line
in metrics.jsonl, and the repeated line must be equal to the last digit.

Signals are honoured between steps and between validation batches. A loss or gradient that is not finite stops the run
before it reaches the weights, and divergence.py says which way leads back.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from pipeline_lib.checkpoints import rng_state
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.oom_handler import is_out_of_memory
from pipeline_lib.stage import Stage, StageFailure, StageInterrupted

from . import incidents
from .accumulation import MemoryRanOutInside, accumulate_gradient, drop_gradients, leave_word
from .batches import Batch, PackedData
from .distribution import interrupted
from .divergence import NotFinite, bad_validation, broken_weights, diverged
from .gradients import clip, norms_by_block, parameter_norms
from .growing import wait_for_text
from .logbook import Logbook
from .optimizers import set_learning_rates, set_momentum
from .progress_line import ProgressLine
from .run_state import TrainingRun
from .saving import Saving
from .schedule import momentum_at, schedule_factor
from .validation import validate


def train(stage: Stage, run: TrainingRun, data: PackedData, book: Logbook) -> Saving:
    """Bring `run` from where it stands to its horizon; return the record of its checkpoints.

    Raises StageInterrupted after saving when a signal or the time limit ends the run, StageFailure when the loss is not
    finite. Any other exception passes through after a checkpoint of the last whole step was saved, unless it is saving
    that failed.
    """
    saving = Saving(stage.settings, stage.work / "checkpoints", book, stage.note)
    try:
        with saving:
            _train(stage, run, data, book, saving)
    except MemoryRanOutInside as ran_out:
        raise StageFailure(leave_word(stage.work, ran_out)) from None
    except StageFailure:
        raise  # saved where that was possible
    except Exception as error:
        if error is not saving.saver.failure:
            _save_before_it_passes(stage, run, saving)
        raise
    return saving


def _save_before_it_passes(stage: Stage, run: TrainingRun, saving: Saving) -> None:
    """Save the last whole step before an error ends the run, and say what became of that beside the error."""
    if run.processes.strategy == "fsdp":
        return  # cut tensors cannot be put together when this process fails alone: the others would not come
    try:
        if not broken_weights(run) and saving.emergency(run):
            stage.say(f"  the state after step {run.step:,} was saved before the error")
    except Exception as second:
        what = f"{type(second).__name__}: {second}"
        stage.say(f"  the state after step {run.step:,} could not be saved ({what}); the checkpoint before it stands")


def _train(stage: Stage, run: TrainingRun, data: PackedData, book: Logbook, saving: Saving) -> None:
    settings: PretrainSettings = stage.settings
    batches = data.training_batches(run.data, run.step)
    progress = ProgressLine(run.horizon.steps, run.step, settings.log_seconds, lambda line: stage.say(f"  {line}"))
    if run.unwritten is not None or book.resumed_at is None:
        _finish_step(stage, run, data, book, saving, run.unwritten or {"step": 0})
        if run.step:  # the checkpoint of this step, taken during its validation, does not know its score
            saving.save_if_due(run, last=run.step == run.horizon.steps)
    while run.step < run.horizon.steps:
        for phase in run.horizon.phases[1:]:
            if phase.first == run.step + 1:
                stage.note(
                    f"from step {phase.first:,} on {phase.sequences} sequences of {phase.context:,} tokens per step"
                )
        there = partial(data.has_next, run.data, run.step)
        if settings.growing_input and not run.processes.smallest(int(there())):
            what = f"step {run.step:,}: all that is packed so far has been read"
            with book.spending("text"):
                wait_for_text(stage, data, run.processes, there, what, partial(saving.emergency, run))
        began = time.monotonic()
        line = _next_step(run, batches, data, book, saving, settings)
        if "micro_batch_reduced_to" in line:
            stage.note(
                f"step {run.step:,}: memory ran out, the same batch was done again in pieces of"
                f" {line['micro_batch_reduced_to']} sequences; the gradient is the same"
            )
        elif "micro_batch_raised_to" in line:
            stage.note(f"step {run.step:,}: pieces of {line['micro_batch_raised_to']} sequences are tried again")
        for name, height in line.get("spikes", {}).items():
            stage.say(f"  step {run.step:,}: {name} stands {height} deviations above the steps before")
        _finish_step(stage, run, data, book, saving, line)
        progress.step(run.step, line["loss"], run.horizon.step_tokens_at(run.step))
        saving.save_if_due(run, last=run.step == run.horizon.steps)
        if run.step < run.horizon.steps:
            _stop_if_asked(stage, run, saving, time.monotonic() - began)


def _stop_if_asked(stage: Stage, run: TrainingRun, saving: Saving, step_seconds: float) -> None:
    """Save and raise StageInterrupted when a signal arrived, or when the next step would pass the time limit."""
    limit = stage.settings.time_limit_seconds
    late = limit is not None and time.monotonic() - stage.started + 1.5 * step_seconds > limit
    out_of_time = run.processes.share(late)
    if out_of_time:
        stage.say(f"  the time limit of {limit:,.0f} s is reached after step {run.step:,}")
    if interrupted(stage, run.processes) or out_of_time:
        saving.emergency(run)
        stage.stop_if_interrupted()
        raise StageInterrupted(signal.SIGTERM)


def optimizer_step(
    run: TrainingRun, batch: Batch, settings: PretrainSettings, before_update: Callable[[float, float], None]
) -> tuple[float, float]:
    """Do one optimizer step on `batch`; return the mean loss in nats per token and the gradient's norm before clipping.

    With several processes each gets the whole batch and takes its part. The loss is divided by the predicted tokens of
    the whole step, so the micro-batch size and the number of processes change memory and speed but neither the loss nor
    the gradient (beyond rounding). `before_update` gets both when the gradient is known and before anything that a
    checkpoint holds is changed. Raises FloatingPointError, with the weights untouched, when loss or norm is not finite.
    """
    total = accumulate_gradient(run, batch, settings)
    named = [(name, parameter.grad) for name, parameter in run.model.named_parameters() if parameter.grad is not None]
    gradients = [gradient for _, gradient in named]
    norms = parameter_norms(gradients, run.processes)
    norm = float(torch.linalg.vector_norm(norms))
    if not (math.isfinite(norm) and math.isfinite(float(total))):
        drop_gradients(run)
        raise NotFinite(float(total), norm)
    run.block_norms = {}
    if settings.block_norm_steps is not None and (run.step + 1) % settings.block_norm_steps == 0:
        run.block_norms = norms_by_block([name for name, _ in named], norms.tolist())
    before_update(float(total), norm)
    run.between_steps = False
    clip(gradients, norm, settings.optimizer.clip_norm)
    set_learning_rates(run.optimizers.values(), schedule_factor(run.step + 1, run.horizon.steps, settings.schedule))
    set_momentum(run.optimizers.values(), momentum_at(run.step + 1, settings.optimizer))
    for optimizer in run.optimizers.values():
        optimizer.step()
    drop_gradients(run)
    run.step += 1
    run.random = rng_state()
    run.between_steps = True
    return float(total), norm


def _next_step(
    run: TrainingRun,
    batches: Iterator[tuple[Batch, dict[str, Any]]],
    data: PackedData,
    book: Logbook,
    saving: Saving,
    settings: PretrainSettings,
) -> dict[str, Any]:
    """Do the next step and return its metrics line."""
    step, events = run.step + 1, run.micro_batches.events
    with book.spending("loader"):
        batch, data_state = next(batches)
    length = batch.inputs.shape[1]
    micro_batch = run.micro_batches.size(length)
    folder, spikes = saving.saver.folder.parent / incidents.FOLDER, {}

    def before_update(loss: float, norm: float) -> None:
        saving.saver.before_update()
        without_this_step = run.spikes.state()
        spikes.update(run.spikes.find({"loss": loss, "grad_norm": norm}))
        if run.spikes.begins_episode:  # its later steps are less worth a replay, and would push the first one out
            what = {"kind": f"spike of {', '.join(spikes)}", "loss": loss, "grad_norm": norm, "deviations": spikes}
            try:
                incidents.record(run, data, batch, settings, folder, what)
            except Exception:
                run.spikes.restore(without_this_step)  # which is not done: what is saved now is the step before
                raise

    try:
        loss, norm = optimizer_step(run, batch, settings, before_update)
    except NotFinite as error:
        broken = broken_weights(run)
        if not broken:
            saving.emergency(run, keep_older=True)
        what = {"kind": "not finite", "loss": incidents.spell(error.loss), "grad_norm": incidents.spell(error.norm)}
        bundle = incidents.record(run, data, batch, settings, folder, {**what, "broken_weights": broken})
        raise StageFailure(diverged(run, error, broken, saving.saver, bundle is not None)) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        drop_gradients(run)
        if run.processes.strategy != "fsdp":  # where putting the tensors together would wait for the others
            saving.emergency(run)
        raise StageFailure(_out_of_memory(run, step, batch, recording=bool(spikes))) from None
    run.data = data_state
    run.score = None
    run.tokens.add(batch)
    factor = schedule_factor(step, run.horizon.steps, settings.schedule)
    line = {"step": step, "loss": loss, "grad_norm": norm, "lr": run.horizon.rates.matrices * factor}
    if spikes:
        line["spikes"] = spikes
    if run.micro_batches.events > events:
        line["micro_batch_reduced_to"] = run.micro_batches.size(length)
    elif run.micro_batches.size(length) > micro_batch:
        line["micro_batch_raised_to"] = run.micro_batches.size(length)  # from the next step on
    if run.block_norms:
        line["block_grad_norms"] = run.block_norms
    run.unwritten = line  # whatever ends the run before the line is written, a checkpoint of this step carries it
    return line


def _out_of_memory_in_validation(run: TrainingRun, context: int) -> str:
    return (
        f"out of memory in the validation after step {run.step}: not even one sequence of {context:,} tokens fits;"
        " lower pretrain.loss_chunk, shorten pretrain.context or use a smaller model"
    )


def _out_of_memory(run: TrainingRun, step: int, batch: Batch, recording: bool) -> str:
    """Say what to change when memory ran out for good; recording: the passes went well, and the step is a spike."""
    if not run.between_steps:
        return (
            f"out of memory in the update at step {step}; the last checkpoint stands: use a smaller model or"
            " an optimizer with smaller moments"
        )
    if recording:
        return (
            f"out of memory at step {step}, which is a spike, while its bundle was written; with"
            " pretrain.keep_incidents 0 none is"
        )
    return (
        f"out of memory at step {step}: not even one sequence of {batch.inputs.shape[1]:,} tokens fits; shorten"
        " pretrain.context, lower pretrain.loss_chunk or use a smaller model"
    )


def _finish_step(
    stage: Stage, run: TrainingRun, data: PackedData, book: Logbook, saving: Saving, line: dict[str, Any]
) -> None:
    """Validate if it is time, then write the line of `run.step`. On a signal save the line unwritten and leave.

    Raises StageFailure when the validation is not finite or has no memory.
    """
    settings: PretrainSettings = stage.settings
    if _validation_due(run, settings):
        size = min(run.micro_batches.size(data.context), data.validation_sequences)
        batches = data.validation_batches(size * run.processes.size)
        run.unwritten = line
        with book.spending("validation"):
            stop = partial(interrupted, stage, run.processes)
            try:
                result = validate(run, batches, data.token_bytes, settings.loss_chunk, stop)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if run.processes.strategy != "fsdp":  # where putting the tensors together would wait for the others
                    saving.emergency(run)
                raise StageFailure(_out_of_memory_in_validation(run, data.context)) from None
        if result is None:
            if run.step:
                saving.emergency(run)
            stage.stop_if_interrupted()
        if not math.isfinite(result.loss):
            raise StageFailure(bad_validation(run, result.loss, saving.saver))
        run.score = result.bits_per_byte
        run.best_score = run.score if run.best_score is None else min(run.score, run.best_score)
        line.update(val_loss=result.loss, val_bits_per_byte=result.bits_per_byte)
        stage.say(f"  step {run.step:,}: validation {result.bits_per_byte:.4f} bits per byte, loss {result.loss:.4f}")
    verdict = book.write(run, line)
    run.unwritten = None
    if verdict is not None:
        stage.note(verdict)


def _validation_due(run: TrainingRun, settings: PretrainSettings) -> bool:
    at_an_end = run.step in (0, run.horizon.steps)
    return at_an_end or (settings.validation_steps is not None and run.step % settings.validation_steps == 0)
