"""Memory that runs out in a TRL trainer: the same batch again in halves, with the same gradient.

A trainer accumulates gradients over several micro-batches before it updates. When memory runs out in one of them, a
part of its gradient may already be in the parameters, on top of what the micro-batches before it left. So all
gradients of the step are dropped, and its micro-batches are done again, cut into pieces that fit; their token ids are
kept for that (gradients would be far larger). Pieces weigh what they hold: by tokens where the trainer divides by the
tokens of the whole step (SFT), by pairs where it takes a mean over the micro-batch (DPO).

The size that fits is remembered per length, saved with a checkpoint that follows at once, because it decides how the
gradient is rounded, and doubled again after a while (oom_handler.SafeBatchSizes). It counts examples, which are padded
to one length. A packed micro-batch is a single row of many conversations: it is cut between them, where attention
ends, and its size counts tokens. What the trainer's own metrics average is averaged over pieces instead of
micro-batches.

Passes without a gradient (held-out figures, the reference of DPO) need none of this: their examples are independent,
so a batch that does not fit, and those after it, are done in pieces (oom_handler.PiecesThatFit).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from pipeline_lib.oom_handler import PiecesThatFit, SafeBatchSizes, free_memory, is_out_of_memory
from pipeline_lib.stage import Stage, StageFailure

Inputs = dict[str, Any]

_BORDERS = "cu_seq_lens_q"
"""Only a packed batch has it: where each conversation begins in its row, and where the last one ends."""


class ExampleTooLarge(StageFailure):
    """Not even one example fits into memory; parameters and counters are those after the last whole step."""


class OutOfMemoryRecovery:
    """Mixin before a TRL trainer. `pairs`: a batch is [chosen, rejected] rows; `stage` is told what happened.

    save_soon: memory ran out since the last checkpoint, so the next one is due.
    """

    pairs = False
    stage: Stage
    micro_batches: SafeBatchSizes
    save_soon = False

    def training_step(self, model: torch.nn.Module, inputs: Inputs, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch, in the pieces that memory needs. Raises ExampleTooLarge."""
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
            else:
                self.micro_batches.succeeded(_length(inputs))
                return loss
            # Outside of the except block, whose traceback holds the activations.
            model.zero_grad(set_to_none=True)
            free_memory()
            metrics, self._total_train_tokens = self._counters
            self._metrics["train"] = copy.deepcopy(metrics)
            self._take_half(batch)
            redo = self._window

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the trainer's loss, weighted by the share of the micro-batch that this piece is."""
        result, share = super().compute_loss(*arguments, **keywords), getattr(self, "_share", 1.0)
        if share == 1.0:
            return result
        return (result[0] * share, *result[1:]) if isinstance(result, tuple) else result * share

    def _in_pieces(self, model: torch.nn.Module, inputs: Inputs, num_items_in_batch: Any) -> torch.Tensor:
        weights, size = _weights(inputs, self.pairs), self._size(inputs)
        whole = sum(weights)
        if size >= whole:
            return super().training_step(model, dict(inputs), num_items_in_batch)
        total = 0.0
        try:
            for piece, weight in _pieces(inputs, weights, size, self.pairs):
                self._share = weight / whole if num_items_in_batch is None or self.pairs else 1.0
                total = total + super().training_step(model, piece, num_items_in_batch)
        finally:
            self._share = 1.0
        return total

    def _size(self, inputs: Inputs) -> int:
        return self.micro_batches.size(_length(inputs))

    def _take_half(self, inputs: Inputs) -> None:
        """Halve the size after memory ran out in a batch. Raises ExampleTooLarge when its longest one was alone."""
        step, weights = self.state.global_step + 1, _weights(inputs, self.pairs)
        tried = min(self._size(inputs), sum(weights))
        if tried <= max(weights):
            alone = f"example of {inputs['input_ids'].shape[1]:,} tokens fits"
            if _BORDERS in inputs:
                alone = f"conversation of {max(weights):,} tokens fits (packed sequences are cut between them only)"
            section = self.stage.spec.section
            raise ExampleTooLarge(
                f"out of memory at step {step}: not even one {alone}; lower {section}.max_length or switch"
                f" {section}.activation_checkpointing on"
            )
        self.micro_batches.failed(_length(inputs), tried)
        self.save_soon = True
        again = f"examples were done again {self._size(inputs)}"
        if _BORDERS in inputs:
            again = f"conversations were done again at most {self._size(inputs):,} tokens"
        self.stage.note(f"step {step}: memory ran out, its {again} at a time; the gradient is the same")

    def pieces_that_fit(self, label: str, one: str) -> PiecesThatFit:
        """Return what cuts the batches of a pass without a gradient into the pieces that memory needs, and notes it.

        label: of the whole pass; one: what an item of its batches is.
        """
        section = self.stage.spec.section
        return PiecesThatFit(
            tell=lambda: self.stage.note(
                f"{label}: memory ran out, so batches were done in pieces; only the rounding differs"
            ),
            alone=f"out of memory: {label}: not even one {one} fits; lower {section}.max_length",
        )

    def tell_of_safe_sizes(self, packed: bool) -> None:
        """Note which sizes of a checkpoint are smaller than a whole micro-batch."""
        for length, size in self.micro_batches.sizes().items():
            if size < self.micro_batches.largest:
                pieces = f"examples of up to {int(length):,} tokens are done {size}"
                if packed:
                    pieces = f"packed micro-batches of up to {int(length):,} tokens are done at most {size:,} tokens"
                self.stage.note(
                    f"memory ran out in an earlier start: {pieces} at a time from the first step on; the gradient is"
                    " the same"
                )


def _length(inputs: Inputs) -> int:
    """Return the class of lengths a batch belongs to: its length rounded up to a power of two, in tokens."""
    return 1 << (int(inputs["input_ids"].shape[1]) - 1).bit_length()


def _weights(inputs: Inputs, pairs: bool) -> list[int]:
    """Return what each example of a batch counts: 1, or the tokens of each conversation of a packed one."""
    if _BORDERS in inputs:
        return inputs[_BORDERS].diff().tolist()
    return [1] * (len(inputs["input_ids"]) // (2 if pairs else 1))


def _pieces(inputs: Inputs, weights: list[int], size: int, pairs: bool) -> Iterator[tuple[Inputs, int]]:
    """Yield (part of a batch, what it weighs); no part weighs more than `size`, unless it is a single example."""
    first = 0
    while first < len(weights):
        end, weight = first + 1, weights[first]
        while end < len(weights) and weight + weights[end] <= size:
            weight += weights[end]
            end += 1
        yield (_packed(inputs, first, end) if _BORDERS in inputs else _rows(inputs, first, end, pairs)), weight
        first = end


def _rows(inputs: Inputs, first: int, end: int, pairs: bool) -> Inputs:
    """Return some examples of a batch; a tensor with two rows per example holds chosen, then rejected ones."""
    count = len(inputs["input_ids"]) // (2 if pairs else 1)
    part: Inputs = {}
    for name, value in inputs.items():
        if not isinstance(value, torch.Tensor):
            part[name] = value
        elif pairs and len(value) == 2 * count:
            part[name] = torch.cat([value[first:end], value[count + first : count + end]])
        else:
            part[name] = value[first:end]
    return part


def _packed(inputs: Inputs, first: int, end: int) -> Inputs:
    """Return some conversations of a packed batch as a packed batch: TRL's collator makes the same of them alone."""
    borders = inputs[_BORDERS][first : end + 1]
    start, stop = int(borders[0]), int(borders[-1])
    part: Inputs = {name: inputs[name][:, start:stop] for name in ("input_ids", "labels", "position_ids")}
    part["seq_idx"] = inputs["seq_idx"][:, start:stop] - first
    part["cu_seq_lens_q"] = part["cu_seq_lens_k"] = borders - start
    part["max_length_q"] = part["max_length_k"] = int(borders.diff().max())
    return part
