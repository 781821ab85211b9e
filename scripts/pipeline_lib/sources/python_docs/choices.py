"""Held-out four-choice questions: which of four descriptions is that of this name?

The three wrong choices are the descriptions of other held-out items of about the same length, from other modules,
where they cannot be right by accident. All four come from one *bucket* of items that are neighbours when sorted by
length. Trap: the items nearest in length to the right one would make the right one the median, and a model that
knows nothing could beat chance by never choosing the longest or the shortest.

Each of the four positions is right in exactly one of any four successive questions, in an order decided by hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..base import Dropped, Record
from .harvest import CatalogItem
from .questions import WHAT, ask
from .splits import draw

CHOICES = 4
BUCKET = 24
"""Fewest items in a bucket."""
NO_DISTRACTORS = "fewer than three descriptions of similar length"


def choice_questions(items: Sequence[CatalogItem]) -> Iterator[Record | Dropped]:
    """Records {question, choices, answer, id} in the order of `items`; `answer` is the index of the right choice."""
    bucket_of = {item.name: bucket for bucket in buckets(items) for item in bucket}
    asked = 0
    for item in items:
        others = [other for other in bucket_of[item.name] if other.module != item.module]
        if len(others) < CHOICES - 1:
            yield Dropped(NO_DISTRACTORS)
            continue
        others.sort(key=lambda other: draw("distractor", item.name, other.name))
        choices = [other.summary for other in others[: CHOICES - 1]]
        answer = _position(asked)
        asked += 1
        choices.insert(answer, item.summary)
        yield {"question": ask(WHAT, item), "choices": choices, "answer": answer, "id": item.name}


def buckets(items: Sequence[CatalogItem]) -> list[list[CatalogItem]]:
    """The items sorted by the length of their descriptions and cut into runs of BUCKET or a few more."""
    by_length = sorted(items, key=lambda item: (len(item.summary), draw("length", item.name)))
    count = max(1, len(by_length) // BUCKET)
    bounds = [len(by_length) * index // count for index in range(count + 1)]
    return [by_length[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


def _position(index: int) -> int:
    """Where the right choice of the question number `index` stands."""
    block, place = divmod(index, CHOICES)
    return sorted(range(CHOICES), key=lambda position: draw("position", block, position))[place]
