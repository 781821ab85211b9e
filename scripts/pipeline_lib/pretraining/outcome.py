"""The end of a run: the final model as a Hugging Face directory, and the numbers for the card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.checkpoints import as_os_errors
from pipeline_lib.stage import atomic_path

from .inputs import TrainingInputs
from .run_state import TrainingRun
from .saving import Saving
from .step_lines import read_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_final_model(model: PreTrainedModel, tokenizer_files: list[Path], folder: Path) -> None:
    """Write the trained model and the tokenizer's files to `folder`, whole or not at all."""
    with atomic_path(folder) as staging:
        staging.mkdir()
        with as_os_errors(staging):
            model.save_pretrained(staging)
        for file in tokenizer_files:
            shutil.copyfile(file, staging / file.name)


def summarise(metrics: Path, run: TrainingRun, inputs: TrainingInputs, saving: Saving) -> dict[str, Any]:
    """Return the summary numbers of a finished run.

    tokens counts positions that went through the model, repeats and padding included; predicted_tokens those with a
    target. tokens_per_second is over the wall clock of the loop, validation and checkpoints included. model_flops
    counts 6 per token and parameter that costs FLOPs, attention and recomputation left out. The three checkpoint_
    numbers are of the last start only: saves, seconds in which they held up the loop, and seconds of writing.
    """
    lines = read_lines(metrics)
    before, after = lines[0], lines[-1]
    tokens = run.horizon.tokens
    flops = 6 * inputs.parameters["matmul"] * tokens
    return {
        "steps": run.step,
        "tokens": tokens,
        "predicted_tokens": run.targets,
        "tokens_per_step": run.horizon.step_tokens,
        "epochs": round(inputs.data.epochs(run.step), 4),
        "val_bits_per_byte_before": before["val_bits_per_byte"],
        "val_bits_per_byte_after": after["val_bits_per_byte"],
        "val_loss_before": before["val_loss"],
        "val_loss_after": after["val_loss"],
        "train_loss_last": after["loss"],
        "seconds": run.seconds,
        "tokens_per_second": tokens / run.seconds,
        "model_flops": flops,
        "model_flops_per_second": flops / run.seconds,
        "checkpoints_saved": saving.saver.saves,
        "checkpoint_stall_seconds": round(saving.saver.stalled, 4),
        "checkpoint_write_seconds": round(saving.saver.written, 4),
        "dtype": run.choices.dtype,
        "compiled": run.choices.compiled,
        "device": str(run.device),
        "peak_learning_rates": run.horizon.to_json()["rates"],
    }
