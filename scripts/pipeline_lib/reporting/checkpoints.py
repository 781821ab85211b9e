"""Look at the checkpoints of a pretraining run, and take one of them out as a model.

    python -m pipeline_lib.reporting.checkpoints --config configs/gpu_125m.yaml
    python -m pipeline_lib.reporting.checkpoints --config configs/gpu_125m.yaml --export best --to models/best

Every byte of every checkpoint is verified, so what is listed as whole can be continued from. The model that is taken
out is a Hugging Face directory like final/ of stage 05, with the tokenizer; of the last step it is the same to the bit.
"""

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline_lib.checkpoints import CheckpointError, Surveyed, as_os_errors, load_checkpoint, survey
from pipeline_lib.config.run_choice import read_run_choice
from pipeline_lib.stage.atomic import atomic_path
from pipeline_lib.stage.errors import StageFailure, UserError
from pipeline_lib.stage.inputs import StageInput
from pipeline_lib.stage.progress import size

INITIAL, TRAINED = "04_init", "05_pretrain"
LAST, BEST = "last", "best"


def rows_of(run_folder: Path) -> list[Surveyed]:
    """Return the checkpoints of stage 05, finished or at work, the last step first and damaged ones at the end."""
    folders = [run_folder / TRAINED / place / "checkpoints" for place in (".", "work")]
    rows = [found for folder in folders for found in survey(folder)]
    return sorted(rows, key=lambda row: (row.problem is not None, -(row.step or 0)))


def best_of(rows: list[Surveyed]) -> Surveyed | None:
    """Return the whole checkpoint with the lowest validation score, the earliest of several; None without any."""
    scored = [row for row in rows if row.problem is None and row.score is not None]
    return min(scored, key=lambda row: (row.score, row.step)) if scored else None


def chosen(rows: list[Surveyed], wanted: str) -> Surveyed:
    """Return the whole checkpoint of a step, or the last or best one. Raises UserError when it is not there."""
    whole = [row for row in rows if row.problem is None]
    if wanted == LAST and whole:
        return whole[0]
    if wanted == BEST and (best := best_of(rows)):
        return best
    found = [row for row in whole if str(row.step) == wanted]
    if not found:
        steps = ", ".join(str(row.step) for row in whole)
        raise UserError(
            f"--export {wanted}: no whole checkpoint of that"
            f" {'validation' if wanted == BEST else 'step'} (there are: {steps or 'none'})"
        )
    return found[0]


def export(row: Surveyed, initial: list[Path], target: Path) -> None:
    """Write the model of a checkpoint to `target`, whole or not at all: configuration, weights, tokenizer.

    initial: the verified files of stage 04. Raises CheckpointError when the weights are damaged or do not fit its
    model, UserError when `target` is there already.
    """
    if target.exists():
        raise UserError(f"--to {target}: is there already; name a folder that is not")
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    weights = load_checkpoint(row.path, verify=False).tensors["model"]
    model = AutoModelForCausalLM.from_pretrained(initial[0].parent, dtype=torch.float32)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise CheckpointError(f"{row.path} does not fit the model of {initial[0].parent}")
    with atomic_path(target) as staging:
        staging.mkdir()
        with as_os_errors(staging):
            model.save_pretrained(staging, state_dict=weights)
        for file in initial:
            if not (staging / file.name).exists():  # the tokenizer
                shutil.copyfile(file, staging / file.name)


def print_rows(rows: list[Surveyed], console: Console) -> None:
    """Print one line per checkpoint: step, validation, size, and what is wrong with it."""
    table = Table()
    for column in ("step", "bits per byte", "size", "folder", "state"):
        table.add_column(column, justify="right" if column in ("step", "bits per byte", "size") else "left")
    best = best_of(rows)
    for row in rows:
        state = row.problem or ("whole, best" if row is best else "whole")
        score = "-" if row.score is None else f"{row.score:.4f}"
        table.add_row("?" if row.step is None else str(row.step), score, size(row.bytes), row.path.name, state)
    console.print(table)


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--export", metavar="STEP", help="take this step's model out; also: last, best")
    parser.add_argument("--to", metavar="FOLDER", type=Path, help="where the exported model is written")


def main(argv: list[str]) -> int:
    """List the checkpoints of a run, or export one; return the exit code."""
    try:
        choice = read_run_choice(__doc__.splitlines()[0], argv, _flags)
        wanted, target = choice.flags.export, choice.flags.to
        if (wanted is None) != (target is None):
            raise UserError("--export STEP and --to FOLDER belong together")
        rows = rows_of(choice.run_folder)
        if not rows:
            raise UserError(f"{choice.run_folder / TRAINED} holds no checkpoint; stage 05 writes them while it trains")
        if wanted is None:
            print_rows(rows, Console(markup=False, emoji=False, highlight=False))
            return 0
        row = chosen(rows, wanted)
        export(row, StageInput(choice.run_folder, INITIAL, choice.arguments).files("*"), target)
        print(f"step {row.step}: {target}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StageFailure, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
