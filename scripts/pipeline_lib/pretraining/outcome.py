"""The end of a run: the final model as a Hugging Face directory, and the numbers for the card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib.checkpoints import as_os_errors
from pipeline_lib.stage import TIMING, Stage, atomic_path
from pipeline_lib.stage.progress import size

from . import incidents
from .cost import Prediction, peak_memory
from .distribution import whole_by_name
from .inputs import TrainingInputs
from .meters import flop_count
from .run_state import TrainingRun
from .saving import Saving
from .step_lines import read_lines
from .text_read import TextRead

NO_STEP = ("loader", "text", "validation")
"""What of a line of timings.jsonl is waiting or validation."""


@dataclass(frozen=True)
class Outcome:
    """A finished run and, in its first process, its whole weights by name."""

    run: TrainingRun
    inputs: TrainingInputs
    saving: Saving
    prediction: Prediction | None
    weights: dict[str, torch.Tensor]
    text: TextRead

    def save_final_model(self, folder: Path) -> None:
        """Write the trained model and the tokenizer's files to `folder`, whole or not at all."""
        with atomic_path(folder) as staging:
            staging.mkdir()
            with as_os_errors(staging):
                self.run.model.save_pretrained(staging, state_dict=self.weights)
            for file in sorted((self.inputs.data.cache.path / "tokenizer").iterdir()):
                shutil.copyfile(file, staging / file.name)

    def summarise(self, work: Path) -> dict[str, Any]:
        """Return the summary numbers of a finished run, whose lines lie in `work`.

        tokens counts positions that went through the model, told apart by use (meters.py); predicted_tokens those with
        a target; text_tokens_read the distinct tokens of the text among them, and how often one was read again.

        Under "timing" is what another run of the same work would measure otherwise. tokens_per_second is over the wall
        clock of the loop, validation and checkpoints included; step_mfu is the share of the measured matmul peak that
        the steps alone reached (without validation and waiting for the loader); loader_share is the share of a step
        spent waiting for the next batch of text that is there, text_wait_seconds the time in which stage 03 had not
        made it yet. The three checkpoint_ numbers are of the last start only: saves, seconds in which they
        held up the loop, and seconds of writing.
        """
        run, inputs = self.run, self.inputs
        lines, times = read_lines(work / "metrics.jsonl"), read_lines(work / "timings.jsonl")
        before, after = lines[0], lines[-1]
        flops = flop_count(inputs.parameters["matmul"], inputs.layers, inputs.attention_width).of(run.tokens)
        spent = {name: sum(line.get(name, 0.0) for line in times[1:]) for name in NO_STEP}
        stepping = sum(_stepping(line) for line in times[1:])
        possible = sum(_possible_flops(line, run) for line in times[1:])
        counts, useful = run.tokens, self.text.predicted_once
        return {
            "steps": run.step,
            "tokens": counts.total,
            "predicted_tokens": counts.predicted,
            "token_uses": {
                "useful": useful,
                "repeated": counts.predicted - useful,
                "masked": counts.masked,
                "padding": counts.padding,
            },
            "text_tokens_read": self.text.tokens_read,
            "tokens_per_step": run.horizon.step_tokens,
            "epochs": round(inputs.data.epochs_read(run.data), 4),
            "val_bits_per_byte_before": before["val_bits_per_byte"],
            "val_bits_per_byte_after": after["val_bits_per_byte"],
            "val_loss_before": before["val_loss"],
            "val_loss_after": after["val_loss"],
            "train_loss_last": after["loss"],
            "out_of_memory": {"events": run.micro_batches.events, **run.micro_batches.sizes()},
            "spikes": sum("spikes" in line for line in lines),
            "model_flops": flops,
            "dtype": run.choices.dtype,
            "compiled": run.choices.compiled,
            "attention": run.choices.attention,
            "fp8_layers": len(run.choices.fp8_layers),
            "processes": run.processes.size,
            "strategy": run.processes.strategy,
            "device": str(run.device),
            "peak_learning_rates": run.horizon.to_json()["rates"],
            TIMING: {
                "seconds": run.seconds,
                "tokens_per_second": counts.total / run.seconds,
                "model_flops_per_second": flops / run.seconds,
                "step_mfu": round(flops / possible, 4),
                "loader_share": round(spent["loader"] / (stepping + spent["loader"]), 5),
                "text_wait_seconds": round(spent["text"], 4),
                "checkpoints_saved": self.saving.saver.saves,
                "checkpoint_stall_seconds": round(self.saving.saver.stalled, 4),
                "checkpoint_write_seconds": round(self.saving.saver.written, 4),
            },
        }

    def note_prediction(self, stage: Stage) -> None:
        """Put the prediction of the start beside what the run took, without its waiting for stage 03.

        Bundles of incidents, which nobody can predict, are told apart.
        """
        if self.prediction is not None:
            unforeseen = _bytes_below(stage.work / incidents.FOLDER)
            seconds = self.run.seconds - stage.result[TIMING]["text_wait_seconds"]
            disk = _bytes_below(stage.work) - unforeseen
            told = self.prediction.against(seconds, peak_memory(self.run.device), disk, stage.resuming)
            bundles = f"; bundles of incidents take {size(unforeseen)} more" if unforeseen else ""
            stage.note(told + bundles, lasting=False)


def _stepping(line: dict[str, Any]) -> float:
    """Return the seconds of a step without its waiting and its validation."""
    return line["seconds"] - sum(line.get(name, 0.0) for name in NO_STEP)


def _possible_flops(line: dict[str, Any], run: TrainingRun) -> float:
    """Return the FLOPs that products at their peak would have done in a step; another start may have had another one.

    Lines of older versions do not say their processes, or their peak.
    """
    peak = line.get("peak_flops", run.choices.peak_flops)
    return _stepping(line) * line.get("processes", run.processes.size) * peak


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def finish(run: TrainingRun, inputs: TrainingInputs, saving: Saving, prediction: Prediction | None) -> Outcome:
    """Return the outcome of a run that reached its horizon; every process must call it.

    Raises StageFailure when the tokens that the loop counted are not those of the plan.
    """
    weights = whole_by_name(run.model.state_dict(), run.processes)
    text = inputs.data.text_read(run.data)
    text.check(run.tokens)
    return Outcome(run, inputs, saving, prediction, weights, text)
