"""Which sequences share a forward pass: similar lengths together, as many as fit in a budget of tokens.

Cost: a batch computes rows x longest tokens, padding included. Sorting by length first keeps the padding to a few
percent; a budget in tokens (not rows) keeps memory the same for short questions and long documents.
Trap: with a fixed number of rows one long document makes its whole batch long.
"""

from collections.abc import Sequence


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return lists of indices into `lengths`, longest batch first, each with rows x longest <= `budget`.

    A sequence longer than the budget gets a batch of its own. Equal lengths keep their order, so the batches depend on
    nothing but the lengths. Longest first means that a machine that is too small fails at once and not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
