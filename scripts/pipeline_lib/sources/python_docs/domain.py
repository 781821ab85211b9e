"""The domain of the LoRA adapter: from a signature and the place it stands in, write the one-line summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..base import Dropped, Record
from .harvest import CatalogItem
from .questions import SIGNATURE, fill

LONGEST_SIGNATURE = 240
TOO_LONG = f"signature longer than {LONGEST_SIGNATURE} characters"


def training_signatures(items: Sequence[CatalogItem]) -> Iterator[Record | Dropped]:
    """Alpaca records."""
    for record in evaluation_signatures(items):
        yield record if isinstance(record, Dropped) else {**record, "input": ""}


def evaluation_signatures(items: Sequence[CatalogItem]) -> Iterator[Record | Dropped]:
    """Records {instruction, output, id}, worded exactly like the training records."""
    for item in items:
        if len(item.signature) > LONGEST_SIGNATURE:
            yield Dropped(TOO_LONG)
        else:
            yield {"instruction": fill(SIGNATURE, item), "output": item.summary, "id": item.name}
