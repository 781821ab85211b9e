"""Memory that runs out in a TRL trainer: the same batch again in halves, with the same gradient.

A trainer accumulates gradients over several micro-batches before it updates. When memory runs out in one of them, a
part of its gradient may already be in the parameters, on top of what the micro-batches before it left. So all
gradients of the step are dropped, and its micro-batches are done again, cut into pieces that fit; their token ids are
kept for that (gradients would be far larger). Pieces weigh what they hold: by tokens where the trainer divides by the
tokens of the whole step (SFT), by pairs where it takes a mean over the micro-batch (DPO).

The size that fits is remembered per length, saved with the checkpoint and doubled again after a while
(oom_handler.SafeBatchSizes). What the trainer's own metrics average is averaged over pieces instead of micro-batches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from pipeline_lib.oom_handler import SafeBatchSizes, free_memory, is_out_of_memory
from pipeline_lib.stage import Stage, StageFailure

Inputs = dict[str, Any]


class OutOfMemoryRecovery:
    """Mixin before a TRL trainer. `pairs`: a batch is [chosen, rejected] rows; `stage` is told what happened."""

    pairs = False
    stage: Stage
    micro_batches: SafeBatchSizes

    def training_step(self, model: torch.nn.Module, inputs: Inputs, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch, in the pieces memory needs. Raises StageFailure at one row."""
        if getattr(self, "_window_step", None) != self.state.global_step:
            self._window_step, self._window = self.state.global_step, []
            self._counters = copy.deepcopy(self._metrics["train"]), self._total_train_tokens
        self._window.append(inputs)
        redo = [inputs]
        while True:
            try:
                for batch in redo:
                    loss = self._in_pieces(model, batch, num_items_in_batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if not self.micro_batches.failed(_length(inputs), min(self._size(inputs), _rows(inputs, self.pairs))):
                    raise StageFailure(
                        f"out of memory at step {self.state.global_step + 1}: not even one example of"
                        f" {inputs['input_ids'].shape[1]:,} tokens fits; lower max_length or switch"
                        " activation_checkpointing on"
                    ) from None
            else:
                self.micro_batches.succeeded(_length(inputs))
                return loss
            # Outside of the except block, whose traceback holds the activations.
            model.zero_grad(set_to_none=True)
            free_memory()
            metrics, self._total_train_tokens = self._counters
            self._metrics["train"] = copy.deepcopy(metrics)
            redo = self._window
            self.stage.note(
                f"step {self.state.global_step + 1}: memory ran out, its examples were done again"
                f" {self._size(inputs)} at a time; the gradient is the same"
            )

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the trainer's loss, weighted by the share of the micro-batch that this piece is."""
        result, share = super().compute_loss(*arguments, **keywords), getattr(self, "_share", 1.0)
        if share == 1.0:
            return result
        return (result[0] * share, *result[1:]) if isinstance(result, tuple) else result * share

    def _in_pieces(self, model: torch.nn.Module, inputs: Inputs, num_items_in_batch: Any) -> torch.Tensor:
        rows, size = _rows(inputs, self.pairs), self._size(inputs)
        if size >= rows:
            return super().training_step(model, dict(inputs), num_items_in_batch)
        total = 0.0
        try:
            for piece, count in _pieces(inputs, rows, size, self.pairs):
                self._share = count / rows if num_items_in_batch is None or self.pairs else 1.0
                total = total + super().training_step(model, piece, num_items_in_batch)
        finally:
            self._share = 1.0
        return total

    def _size(self, inputs: Inputs) -> int:
        return self.micro_batches.size(_length(inputs))


def _length(inputs: Inputs) -> int:
    """Return the class of lengths a batch belongs to: its length rounded up to a power of two, in tokens."""
    return 1 << (int(inputs["input_ids"].shape[1]) - 1).bit_length()


def _rows(inputs: Inputs, pairs: bool) -> int:
    """Return the number of examples of a batch."""
    return len(inputs["input_ids"]) // (2 if pairs else 1)


def _pieces(inputs: Inputs, rows: int, size: int, pairs: bool) -> Iterator[tuple[Inputs, int]]:
    """Yield (part of a batch, examples in it); a tensor with two rows per example holds chosen, then rejected ones."""
    for start in range(0, rows, size):
        stop = min(rows, start + size)
        piece: Inputs = {}
        for name, value in inputs.items():
            if not isinstance(value, torch.Tensor):
                piece[name] = value
            elif pairs and len(value) == 2 * rows:
                piece[name] = torch.cat([value[start:stop], value[rows + start : rows + stop]])
            else:
                piece[name] = value[start:stop]
        yield piece, stop - start
