"""Which documents an optimizer step read: from a spike of the loss to the text that may have caused it.

The place in the data is computed as the loop computes it, stages of a curriculum included, for a cache that has not
grown since the run began; for one that has, `--replay` of a spike has what was read at the time.
"""

from typing import TYPE_CHECKING

from pipeline_lib.packing.trace import Request, print_sequences
from pipeline_lib.stage import Stage, UserError
from pipeline_lib.stage.catalog import BY_NAME

from .inputs import open_training_inputs

if TYPE_CHECKING:
    from pipeline_lib.stage import ActionContext


def print_step(context: "ActionContext", place: str) -> None:
    """Print what `STEP` read, a line per document, or sequence `ROW` of it in full for `STEP:ROW`. Raises UserError."""
    step, row = _understand(place)
    stage = Stage(BY_NAME["05_pretrain"], context.config, context.run_folder, 1, context.arguments)
    inputs = open_training_inputs(stage)
    horizon, data, cache = inputs.horizon, inputs.data, inputs.data.cache
    if step > horizon.steps:
        raise UserError(f"--trace {place}: the run has {horizon.steps:,} steps")
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


def _understand(place: str) -> tuple[int, int | None]:
    step, _, row = place.partition(":")
    try:
        numbers = int(step), int(row) if row else None
    except ValueError:
        numbers = 0, None
    if numbers[0] < 1 or (numbers[1] or 0) < 0:
        raise UserError(f"--trace {place}: give a step from 1 on, STEP or STEP:ROW")
    return numbers
