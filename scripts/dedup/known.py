"""What a run is compared with beside itself: the kept documents of an index, and the look-up of their keys."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .corpus import Corpus, Piece
from .external_sort import Records


class Table(NamedTuple):
    """One column of an indexed source, sorted for look-up; among equal keys the better document comes first."""

    keys: np.ndarray  # uint64, ascending
    rows: np.ndarray  # int64, counted within the source
    first: int  # row of the source's first document


@dataclass(frozen=True)
class Known:
    """What an index already keeps: its documents stay, and new ones are compared with them.

    Rows count over its pieces; new rows come after them. `tables` maps a column ("digest_high" or a band) to one Table
    per indexed source, oldest first.
    """

    pieces: tuple[tuple[Corpus, Piece], ...] = ()
    sketches: tuple[Path, ...] = ()
    eras: tuple[int, ...] = ()  # first row of each indexed source
    rows: int = 0
    tables: dict[str, list[Table]] = field(default_factory=dict)


def with_known(blocks: Iterator[Records], tables: list[Table], limit: int) -> Iterator[Records]:
    """Yield the blocks with, beside each key that a table has, up to `limit` of that table's rows."""
    for keys, rows in blocks:
        distinct = np.unique(keys) if tables else keys
        extra = [(keys, rows)]
        for known_keys, known_rows, first in tables:
            low = np.searchsorted(known_keys, distinct, side="left")
            count = np.minimum(np.searchsorted(known_keys, distinct, side="right") - low, limit)
            at = np.repeat(low - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
            extra.append((np.repeat(distinct, count), known_rows[at] + first))
        if len(extra) == 1:
            yield keys, rows
            continue
        keys, rows = (np.concatenate(part) for part in zip(*extra, strict=True))
        order = np.argsort(keys)
        yield keys[order], rows[order]
