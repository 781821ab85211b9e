"""Which documents an optimizer step read: from a spike of the loss to the text that may have caused it."""

from itertools import islice
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
    horizon, cache = inputs.horizon, inputs.data.cache
    if horizon.phases:
        raise UserError(
            f"--trace {place}: a step of a curriculum cannot be traced; --replay STEP names sequences of a spike, and"
            " 03_tokenize_and_pack.py --trace CONTEXT:SEQUENCE shows each of them"
        )
    if step > horizon.steps:
        raise UserError(f"--trace {place}: the run has {horizon.steps:,} steps")
    order = cache.order(horizon.context, stage.seed)
    position = order.advance(order.start(), (step - 1) * horizon.sequences)
    numbers = list(islice(order.iterate(position, None), horizon.sequences))
    if row is not None and row >= len(numbers):
        raise UserError(f"--trace {place}: a step has the rows 0 to {len(numbers) - 1}")
    if row is not None:
        print_sequences(cache, [Request(horizon.context, "train", numbers[row])], context.run_folder / "02_clean")
        return
    print(f"step {step:,} of {horizon.steps:,}: {len(numbers)} sequences of {horizon.context} tokens")
    for place_in_step, number in enumerate(numbers):
        print(f"row {place_in_step}: train sequence {number:,}")
        for piece in cache.pieces(number, horizon.context):
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
