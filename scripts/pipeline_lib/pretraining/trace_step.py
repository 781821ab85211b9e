"""Which documents an optimizer step read: from a spike of the loss to the text that may have caused it.

Settings and seed are those that the training in the stage folder was made from, whatever this start was given; before
any training they are those of now. The place in the data is computed as the loop computes it, stages of a curriculum
included. What a checkpoint says was read is held against it: batches that were changed on the way, or a cache that has
grown since, are refused, and `--replay` of a spike has what was read at the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline_lib.checkpoints import load_state, newest_valid_checkpoint
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.packing.trace import Request, print_sequences
from pipeline_lib.stage import Stage, UserError
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.stage.workspace import WORK, Workspace

from .batches import PackedData
from .inputs import open_training_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline_lib.stage import ActionContext


def print_step(context: ActionContext, place: str) -> None:
    """Print what `STEP` read, a line per document, or sequence `ROW` of it in full for `STEP:ROW`. Raises UserError."""
    step, row = _understand(place)
    stage = Stage(BY_NAME["05_pretrain"], context.config, context.run_folder, 1, context.arguments)
    trained = _training_of(stage.folder)
    if trained is None:
        print("nothing was trained here yet: with the settings of now,")
    else:
        _take_over(stage, trained[1])
    inputs = open_training_inputs(stage)
    horizon, data, cache = inputs.horizon, inputs.data, inputs.data.cache
    if step > horizon.steps:
        raise UserError(f"--trace {place}: the run has {horizon.steps:,} steps")
    if trained is not None:
        _compare_with_what_was_read(data, trained[0])
    length = data.context_of(step)
    numbers = [read["sequence"] for read in data.documents_of_next(data.state_before(step), step - 1)]
    if row is not None and row >= len(numbers):
        raise UserError(f"--trace {place}: a step has the rows 0 to {len(numbers) - 1}")
    if row is not None:
        print_sequences(cache, [Request(length, "train", numbers[row])])
        return
    print(f"step {step:,} of {horizon.steps:,}: {len(numbers)} sequences of {length} tokens")
    for place_in_step, number in enumerate(numbers):
        print(f"row {place_in_step}: train sequence {number:,}")
        for piece in cache.pieces(number, length):
            print(f"  {piece.length:6} tokens of {piece.id}, {piece.source}, {piece.shard} row {piece.row}")


def _training_of(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return where the checkpoints of the training in a stage folder lie and what it was made from.

    Unfinished training comes before finished, as for `--replay`; None where there is neither.
    """
    begun = Workspace.made_from(folder)
    if begun is not None:
        return folder / WORK / "checkpoints", begun
    finished = Manifest.read(folder / MANIFEST)
    return None if finished is None else (folder / "checkpoints", finished.fingerprint)


def _take_over(stage: Stage, made_from: dict[str, Any]) -> None:
    """Give `stage` the settings and the seed of a fingerprint. Raises UserError when its inputs are others now."""
    try:
        stage.settings = PretrainSettings.model_validate(made_from["settings"])
    except ValidationError:
        raise UserError(
            f"{stage.folder} was trained by another version, whose settings this one does not read: look at the step"
            " with that version"
        ) from None
    stage.seed = made_from["seed"]
    for name in stage.needs:
        source = stage.input(name)
        if made_from["inputs"].get(name) not in (source.digest, source.manifest.attempt):
            raise UserError(
                f"{stage.folder} was trained on another {name} than {source.path} is now, so what a step read cannot be"
                " told from it: put that back, or look at a step that left a bundle with --replay"
            )


def _compare_with_what_was_read(data: PackedData, checkpoints: Path) -> None:
    """Raise UserError when the newest checkpoint has read other sequences than the settings say."""
    newest = newest_valid_checkpoint(checkpoints)
    state = None if newest is None else load_state(newest)
    if state is None or state["data"] is None:
        return
    expected = data.state_before(state["step"] + 1)
    if expected["read"] != state["data"]["read"]:
        raise UserError(
            f"the batches of {newest}, or the text, were changed on the way, so what a step read cannot be told from"
            " the settings: look at a step that left a bundle with --replay"
        )


def _understand(place: str) -> tuple[int, int | None]:
    step, _, row = place.partition(":")
    try:
        numbers = int(step), int(row) if row else None
    except ValueError:
        numbers = 0, None
    if numbers[0] < 1 or (numbers[1] or 0) < 0:
        raise UserError(f"--trace {place}: give a step from 1 on, STEP or STEP:ROW")
    return numbers
