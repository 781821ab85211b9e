"""One pass over a question for all of its answers.

A four-choice question repeats its prompt four times: (prompt, A), (prompt, B) ... In a causal model the states of the
prompt do not depend on what follows, so they need computing once. All answers stand in one row behind one prompt,

    tokens     p p p p  a a a  b b  c c c
    segments   0 0 0 0  1 1 1  2 2  3 3 3
    positions  0 1 2 3  4 5 6  4 5  4 5 6

and a token attends to an earlier one if that belongs to the prompt or to its own answer. Positions go on from the
prompt in every answer, so each answer sees exactly what it would see alone: the numbers are the same up to rounding.
Cost: an explicit mask of rows x length^2 booleans, instead of the causal kernel that needs none. Half of the work of a
four-choice question is saved when prompt and answers are about equally long. A row with one answer takes no mask.
The last token of an answer predicts nothing that is asked, so it is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One input sequence, and what to read from its states: (request, column, token expected next)."""

    tokens: list[int]
    segments: list[int]
    positions: list[int]
    reads: list[tuple[int, int, int]]

    @property
    def is_shared(self) -> bool:
        """Whether several answers stand behind one prompt."""
        return self.segments[-1] > 0


Window = tuple[int, list[int], list[int]]
"""(request, context tokens, continuation tokens)."""


def separate_rows(windows: Sequence[Window]) -> list[Row]:
    """Return one row per window."""
    return [_make_row(context, [(request, answer)]) for request, context, answer in windows]


def shared_rows(windows: Sequence[Window], longest: int) -> list[Row]:
    """Return rows of at most `longest` tokens, windows with the same context in one row while they fit.

    An answer more than twice as long as its context stands alone: there is little to save, and many documents that
    share nothing but a beginning-of-text token would make one row with an enormous mask.
    """
    groups: list[tuple[list[int], list[tuple[int, list[int]]]]] = []
    open_groups: dict[tuple[int, ...], tuple[int, int]] = {}  # context -> (its last group, tokens in that group's row)
    for request, context, answer in windows:
        key = tuple(context)
        place, size = open_groups.get(key, (-1, 0))
        grown = size + len(answer) - 1
        if place < 0 or grown > longest or len(answer) > 2 * len(context):
            place, grown = len(groups), len(context) + len(answer) - 1
            groups.append((context, []))
        if len(answer) <= 2 * len(context):
            open_groups[key] = place, grown
        groups[place][1].append((request, answer))
    return [_make_row(context, answers) for context, answers in groups]


def _make_row(context: list[int], answers: list[tuple[int, list[int]]]) -> Row:
    size = len(context)
    tokens, segments, positions = list(context), [0] * size, list(range(size))
    reads = []
    for number, (request, answer) in enumerate(answers, 1):
        reads.append((request, size - 1, answer[0]))
        reads += [(request, len(tokens) + offset, token) for offset, token in enumerate(answer[1:])]
        tokens += answer[:-1]
        # a single answer simply continues the context: no segment of its own, no mask
        segments += [number if len(answers) > 1 else 0] * (len(answer) - 1)
        positions += range(size, size + len(answer) - 1)
    return Row(tokens, segments, positions, reads)


def as_tensors(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Return the model inputs of a batch, padded on the right: input_ids, and for shared rows positions and mask.

    input_ids and position_ids are int64 [rows, longest]; attention_mask is bool [rows, 1, longest, longest].
    """
    longest = max(len(row.tokens) for row in rows)
    inputs = {"input_ids": _padded([row.tokens for row in rows], longest, 0)}
    if not any(row.is_shared for row in rows):
        return inputs
    segments = _padded([row.segments for row in rows], longest, -1)
    keys, queries = segments[:, None, :], segments[:, :, None]
    earlier = torch.ones(longest, longest, dtype=torch.bool).tril()
    # padding (-1) may attend to earlier padding and the prompt, so that no row of the softmax is empty
    inputs["attention_mask"] = (earlier & ((keys == 0) | (keys == queries)))[:, None]
    inputs["position_ids"] = _padded([row.positions for row in rows], longest, 0)
    return inputs


def _padded(sequences: Sequence[list[int]], longest: int, filler: int) -> torch.Tensor:
    return torch.tensor([[*sequence, *[filler] * (longest - len(sequence))] for sequence in sequences])
