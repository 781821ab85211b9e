"""The gradient of a whole batch from micro-batches, also when memory runs out in the middle.

Memory that runs out loses nothing: the gradients so far are dropped, the micro-batch is halved, and the *same* batch is
done again. Its loss is a sum over its tokens divided by their number, so into how many pieces it is cut changes neither
the loss nor the gradient beyond rounding. The size that went through is remembered per context length, belongs to the
checkpoint, and is doubled again after a while (oom_handler.SafeBatchSizes).

With several processes memory that runs out ends the run: the others already wait in the exchange of gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.oom_handler import free_memory, is_out_of_memory

from .batches import Batch
from .forward import summed_loss
from .run_state import TrainingRun

Result = TypeVar("Result")


def accumulate_gradient(run: TrainingRun, batch: Batch, settings: PretrainSettings) -> torch.Tensor:
    """Leave the gradient of the mean loss of `batch` in the parameters; return that loss, a float32 scalar.

    With several processes each gets the whole batch and takes its part; the loss is that of all of them. Raises
    the error of the allocator when not even one sequence fits; no gradient is left then.
    """
    processes, targets = run.processes, batch.target_count
    mine = batch.part(processes.rank, processes.size).to(run.device)

    def forward_backward(size: int) -> torch.Tensor:
        total = torch.zeros((), device=run.device)
        parts = list(mine.split(size))
        for part in parts:
            with processes.accumulating(run.network, last=part is parts[-1]):
                loss = summed_loss(run, part, settings.loss_chunk) / targets
                (loss * processes.size).backward()  # the average over the processes is then the sum of their parts
            total += loss.detach()
        return total

    length = mine.inputs.shape[1]
    total = with_memory(run, length, len(mine.inputs), forward_backward)
    run.micro_batches.succeeded(length)
    return processes.sum(total)


def with_memory(run: TrainingRun, length: int, sequences: int, action: Callable[[int], Result]) -> Result:
    """Return `action(size)` for the safe number of sequences of `length` tokens, halved as often as memory runs out.

    sequences: how many there are to do, more than which no attempt can have held at once. Raises the allocator's error
    when one sequence is too much.
    """
    while True:
        size = min(run.micro_batches.size(length), sequences)
        try:
            return action(size)
        except Exception as error:
            drop_gradients(run)
            if not is_out_of_memory(error) or run.processes.size > 1 or not run.micro_batches.failed(length, size):
                raise
        # Outside of the except block, whose traceback holds the activations.
        free_memory()
        run.save_soon = True


def drop_gradients(run: TrainingRun) -> None:
    """Forget the gradients."""
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
