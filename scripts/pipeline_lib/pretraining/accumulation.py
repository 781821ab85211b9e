"""The gradient of a whole batch from micro-batches, also when memory runs out in the middle.

Memory that runs out loses nothing: the gradients so far are dropped, the micro-batch is halved, and the *same* batch is
done again. Its loss is a sum over its tokens divided by their number, so into how many pieces it is cut changes neither
the loss nor the gradient beyond rounding. The size that went through is remembered per context length, belongs to the
checkpoint, and is doubled again after a while (oom_handler.SafeBatchSizes).

With several processes all ask after every attempt whether memory ran out in any of them, and halve together:
gradients are exchanged only after that (distribution.py). With fsdp the others already wait for a piece of the failed
pass and cannot be asked: it ends the run, and the next start, which torchrun can do by itself, takes half
(`leave_word`, `take_over`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.oom_handler import free_memory, is_out_of_memory
from pipeline_lib.stage import write_json_atomic
from pipeline_lib.stage.workspace import read_json

from .batches import Batch
from .forward import summed_loss
from .run_state import TrainingRun

Result = TypeVar("Result")

WORD = "memory_ran_out.json"


class MemoryRanOutInside(Exception):
    """Memory ran out inside an exchange with other processes, with `tried` sequences of `length` tokens at once."""

    def __init__(self, length: int, tried: int):
        super().__init__(f"memory ran out with {tried} sequences of {length:,} tokens at once")
        self.length, self.tried = length, tried


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
            loss = summed_loss(run, part, settings.loss_chunk) / targets
            processes.backward(loss, run.network, last=part is parts[-1])
            total += loss.detach()
        return total

    length = mine.inputs.shape[1]
    total = with_memory(run, length, len(mine.inputs), forward_backward)
    if processes.strategy != "fsdp":  # where trying a larger size again would end the run again
        run.micro_batches.succeeded(length)
    processes.sum_gradients(run.model)
    return processes.sum(total)


def with_memory(run: TrainingRun, length: int, sequences: int, action: Callable[[int], Result]) -> Result:
    """Return `action(size)` for the safe number of sequences of `length` tokens, halved as often as memory runs out.

    sequences: how many there are to do, the same number in all processes; no attempt can have held more at once.
    `action` exchanges nothing with other processes, unless the strategy is fsdp. Raises the allocator's error (or
    MemoryError where it was another process's) when one sequence is too much, and MemoryRanOutInside with fsdp.
    """
    while True:
        size, result, failure = min(run.micro_batches.size(length), sequences), None, None
        try:
            result = action(size)
        except Exception as error:
            drop_gradients(run)
            if not is_out_of_memory(error):
                raise
            if run.processes.strategy == "fsdp":
                raise MemoryRanOutInside(length, size) from None
            failure = error.with_traceback(None)  # the frames of the failed pass hold its activations
        if run.processes.strategy == "fsdp" or not run.processes.largest(int(failure is not None)):
            return result
        drop_gradients(run)
        if not run.micro_batches.failed(length, size):
            raise failure or MemoryError("memory ran out in another process")
        free_memory()
        run.save_soon = True


def leave_word(work: Path, ran_out: MemoryRanOutInside) -> str:
    """Leave word to the next start in `work`, and return the sentence with which this one ends."""
    if ran_out.tried == 1:
        return f"{ran_out}; the last checkpoint stands: shorten pretrain.context or use more processes"
    write_json_atomic(work / WORD, {"length": ran_out.length, "tried": ran_out.tried})
    return (
        f"{ran_out}; the last checkpoint stands, and the next start takes {ran_out.tried // 2} at once: start again, or"
        " let torchrun do it (--max-restarts 3)"
    )


def take_over(run: TrainingRun, work: Path) -> str | None:
    """Take the size that the start before left word of; return what to say about it, None when there was none."""
    word = run.processes.share(read_json(work / WORD) if run.processes.first else None)
    if word is None:
        return None
    run.micro_batches.failed(word["length"], word["tried"])
    run.save_soon = True  # the checkpoint then has the size, and the word is not needed any more
    if run.processes.first:
        (work / WORD).unlink()
    return (
        f"memory ran out in the start before with {word['tried']} sequences of {word['length']:,} tokens at once: this"
        f" one takes {run.micro_batches.size(word['length'])}; batch and gradient are the same"
    )


def drop_gradients(run: TrainingRun) -> None:
    """Forget the gradients."""
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
