"""Text that was read once and is kept for the next reader, as far as there is memory for it.

A run reads its documents up to three times (sketches, shingle sets of the candidates, copy), and decompressing Parquet
costs as much as hashing what is in it. A corpus that fits is therefore decompressed once. What does not fit is read
again each time: the answer is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from .corpus import Piece


class HeldText:
    """The tables of some pieces, all columns, `room` bytes of memory at most. Safe for use by several threads."""

    def __init__(self, room: int):
        self._left = room
        self._tables: dict[tuple[Path, tuple[int, ...]], list[pa.Table]] = {}
        self._lock = threading.Lock()

    def get(self, piece: Piece) -> list[pa.Table] | None:
        """Return the tables of a piece that is held, or None."""
        return self._tables.get((piece.file, piece.groups))

    def may_hold(self, piece: Piece) -> bool:
        """Tell whether a piece is likely to fit; its size in memory is known once it was read."""
        return piece.bytes <= self._left

    def keep(self, piece: Piece, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables of a piece, and hold them if all of them were read and fitted."""
        seen: list[pa.Table] = []
        fits = True
        for table in tables:
            if fits := fits and self._take(table.nbytes):
                seen.append(table)
            else:
                self._take(-sum(one.nbytes for one in seen))
                seen.clear()
            yield table
        if fits:
            self._tables[(piece.file, piece.groups)] = seen

    def _take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True
