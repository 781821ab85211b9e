"""Packed sequences as tensors: what the training loop reads, and where the reading stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.packing.reading_order import ReadingOrder

from .curriculum import Phase, phase_at
from .loss import IGNORED
from .text_read import TextRead, extend_spans


@dataclass(frozen=True)
class Batch:
    """Packed sequences, each tensor int64 [batch, length].

    inputs: token ids; targets: the id that follows, IGNORED where that is padding or another document; positions:
    0, 1, 2 ... within each document; documents: equal numbers for tokens of the same document of a sequence.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor

    @property
    def counted(self) -> Tensor:
        """Where a token is predicted, bool [batch, length]."""
        return self.targets != IGNORED

    @property
    def target_count(self) -> int:
        """Number of predicted tokens."""
        return int(self.counted.sum())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return Batch(*(tensor.to(device) for tensor in self._tensors()))

    def part(self, rank: int, size: int) -> Batch:
        """Return the sequences of process `rank` of `size`, equally many for each: empty ones fill up the last."""
        count = -(-len(self.inputs) // size)
        missing = count * size - len(self.inputs)
        fillings = (0, IGNORED, 0, 0)
        tensors = []
        for tensor, filling in zip(self._tensors(), fillings, strict=True):
            rows = tensor if not missing else torch.cat([tensor, tensor.new_full((missing, tensor.shape[1]), filling)])
            tensors.append(rows[rank * count : (rank + 1) * count])
        return Batch(*tensors)

    def split(self, sequences: int) -> Iterator[Batch]:
        """Yield parts of at most `sequences` sequences, in order."""
        for parts in zip(*(tensor.split(sequences) for tensor in self._tensors()), strict=True):
            yield Batch(*parts)

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.inputs, self.targets, self.positions, self.documents


def as_batch(rows: dict[str, Any]) -> Batch:
    """Return a batch of the packed cache as tensors.

    The cache labels each token with itself, as Hugging Face models expect; here a position is labelled with the token
    that follows it, so nothing needs to be shifted once hidden states have been made.
    """
    labels = rows["labels"]
    targets = np.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    arrays = (rows["input_ids"], targets, rows["position_ids"], rows["segment_ids"])
    return Batch(*(torch.from_numpy(array) for array in arrays))


class PackedData:
    """The two splits of a packed cache, cut into batches."""

    def __init__(
        self,
        cache: PackedCache,
        context: int,
        sequences: int,
        seed: int,
        validation_tokens: int,
        phases: tuple[Phase, ...] = (),
        growing: bool = False,
    ):
        """`sequences` of `context` tokens make an optimizer step; validation reads about `validation_tokens`.

        With `phases` they say what makes a step, and `context` is the length of the validation's sequences. With
        `growing` the first pass reads part after part and validation the first part only, so that neither depends on
        how many parts there are yet. Raises UserError for a context length that the cache has no plan for.
        """
        self.cache = cache
        self.context = context
        self.token_bytes = torch.from_numpy(cache.token_bytes)
        self._phases = phases or (Phase(1, 1, context, sequences),)
        self._seed = seed
        self._growing = growing
        table = cache.table(context, "val")
        available = int(table.bounds[table.parts[1]]) if growing else table.sequences
        self._validation = min(available, -(-validation_tokens // context))

    @property
    def validation_sequences(self) -> int:
        """Number of sequences of a validation."""
        return self._validation

    def epochs(self, steps: int) -> float:
        """Return how often `steps` optimizer steps read the training split."""
        total = 0.0
        for phase in self._phases:
            last = steps if phase is self._phases[-1] else min(steps, phase.last)
            total += max(0, last - phase.first + 1) * phase.sequences / self.cache.sequences(phase.context)
        return total

    def epochs_read(self, state: dict[str, Any]) -> float:
        """Return how often the training split was read up to `state`, whatever the batches were on the way."""
        return sum((span[4] - span[3]) / self.cache.sequences(span[0]) for span in state["read"])

    def text_read(self, state: dict[str, Any]) -> TextRead:
        """Return what of the text was read up to `state`."""
        # A curriculum that was changed on the way may have left lengths behind.
        contexts = {phase.context for phase in self._phases} | {span[0] for span in state["read"]}
        return TextRead(self.cache, state, sorted(contexts), self.context)

    def training_batches(self, state: dict[str, Any] | None, step: int = 0) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Yield the batches of all steps from where `state` ends, with the state after each; epochs without end.

        While the cache is unfinished it ends where what is published does, unless `cache` has been replaced by then by
        one that knows more parts (growing.py).

        step: how many optimizer steps were done up to `state`, which decides the phase. The state is that of the cache
        and, as "read", the spans of sequences read so far (text_read.py).
        """
        spans = state["read"] if state else []
        while self.has_next(state, step):
            phase = phase_at(self._phases, step + 1)
            state = self._enter(phase, state)
            whole = not self.cache.unfinished
            rows = self.cache.batches(
                phase.context, phase.sequences, state=state, seed=self._seed, arrays="numpy",
                epochs=None if whole else 1, drop_last=not whole,
            )  # fmt: skip
            order = self.cache.order(phase.context, self._seed)
            before = state or _start(phase, order)
            for batch in rows:
                spans = extend_spans(spans, order, before, len(batch["sequences"]))
                step, before = step + 1, batch["state"]
                state = {**before, "read": spans}
                yield as_batch(batch), state
                if phase is not self._phases[-1] and step == phase.last:
                    rows.close()
                    break

    def has_next(self, state: dict[str, Any] | None, step: int) -> bool:
        """Say whether all of the batch after `state`, which `step` steps led to, is there to be read."""
        if not self.cache.unfinished:
            return True
        phase = phase_at(self._phases, step + 1)
        offset = (self._enter(phase, state) or {"offset": 0})["offset"]
        return offset + phase.sequences <= self.cache.sequences(phase.context)

    def context_of(self, step: int) -> int:
        """Return the length of the sequences of optimizer step `step` (1 ...)."""
        return phase_at(self._phases, step).context

    def state_before(self, step: int) -> dict[str, Any] | None:
        """Return the state with which optimizer step `step` (1 ...) begins if the cache was always as it is now."""
        state, spans = self._enter(self._phases[0], None), []
        for phase in self._phases:
            last = step - 1 if phase is self._phases[-1] else min(step - 1, phase.last)
            if phase.first <= last:
                read = (last - phase.first + 1) * phase.sequences
                before, order = self._enter(phase, state), self.cache.order(phase.context, self._seed)
                spans = extend_spans(spans, order, before or _start(phase, order), read)
                state = {**self.cache.state_after(phase.context, read, before, self._seed), "read": spans}
        return state

    def _enter(self, phase: Phase, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return where a phase goes on: where `state` stands, in sequences of its length."""
        if state is None and self._growing:
            return self.cache.start_with_first_part(phase.context, self._seed)
        if state is None or state.get("context") == phase.context:
            return state
        return self.cache.carry_over(state, phase.context)

    def documents_of_next(self, state: dict[str, Any] | None, step: int) -> list[dict[str, Any]]:
        """Return, for each sequence of the batch after `state`, its number and the documents it is made of."""
        phase = phase_at(self._phases, step + 1)
        state = self._enter(phase, state)
        rows = self.cache.batches(
            phase.context, phase.sequences, state=state, seed=self._seed, epochs=None, prefetch=0, arrays="numpy"
        )
        numbers = next(rows)["sequences"].tolist()
        return [
            {
                "sequence": number,
                "pieces": [
                    {"id": piece.id, "source": piece.source, "first": piece.first, "length": piece.length}
                    for piece in self.cache.pieces(number, phase.context)
                ],
            }
            for number in numbers
        ]

    def validation_batches(self, sequences: int) -> Iterator[Batch]:
        """Yield the validation sequences, `sequences` at a time, always the same ones in the same order.

        They come part after part, so text that is packed later changes them only if there were too few before.
        """
        left, start = self._validation, self.cache.start_with_first_part(self.context, self._seed, "val")
        rows = self.cache.batches(self.context, sequences, state=start, seed=self._seed, split="val", arrays="numpy")
        for batch in rows:
            if left <= 0:
                return
            yield as_batch({name: batch[name][:left] for name in _ARRAYS})
            left -= sequences


_ARRAYS = ("input_ids", "labels", "position_ids", "segment_ids")


def _start(phase: Phase, order: ReadingOrder) -> dict[str, Any]:
    """Return what spans need to know of the place where reading begins without a state."""
    return {"context": phase.context, "epoch": 0, "parts": len(order.parts) - 1, "offset": 0}
