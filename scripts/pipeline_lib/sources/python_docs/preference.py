"""Preference pairs: the right description of a name against the description of its neighbour.

The neighbour is another item of the same split in the same class or module, so the wrong answer is written in the
same style, about the same subject: only the name tells which one is right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ..base import Dropped, Record
from .harvest import CatalogItem
from .questions import WHAT, ask
from .splits import pick

NO_NEIGHBOUR = "no other item of its split in its class or module"


def described_pairs(items: Sequence[CatalogItem]) -> Iterator[tuple[CatalogItem, CatalogItem] | Dropped]:
    """(item, neighbour) for every item that has one, in the order of `items`."""
    by_owner: dict[str, list[CatalogItem]] = defaultdict(list)
    by_module: dict[str, list[CatalogItem]] = defaultdict(list)
    for item in items:
        by_owner[item.owner].append(item)
        by_module[item.module].append(item)
    for item in items:
        neighbours = by_owner[item.owner] if len(by_owner[item.owner]) > 1 else by_module[item.module]
        others = [neighbour for neighbour in neighbours if neighbour.name != item.name]
        yield (item, pick(others, "neighbour", item.name)) if others else Dropped(NO_NEIGHBOUR)


def training_pairs(items: Sequence[CatalogItem]) -> Iterator[Record | Dropped]:
    """Pairs as {prompt, chosen, rejected}, each a list of messages."""
    for pair in described_pairs(items):
        if isinstance(pair, Dropped):
            yield pair
            continue
        right, wrong = pair
        yield {
            "prompt": [{"role": "user", "content": ask(WHAT, right)}],
            "chosen": [{"role": "assistant", "content": right.summary}],
            "rejected": [{"role": "assistant", "content": wrong.summary}],
            "id": right.name,
        }


def evaluation_pairs(items: Sequence[CatalogItem]) -> Iterator[Record | Dropped]:
    """Pairs as {prompt, chosen, rejected}, each a string."""
    for pair in described_pairs(items):
        if isinstance(pair, Dropped):
            yield pair
            continue
        right, wrong = pair
        yield {"prompt": ask(WHAT, right), "chosen": right.summary, "rejected": wrong.summary, "id": right.name}
