"""What every file reader yields: rows in file order, and drops in place of rows that cannot be used.

Two kinds of damage are told apart. A row that is bad on its own (not JSON, not UTF-8, too long) becomes a `Dropped`
with its place, is counted, and reading goes on. A file that is damaged as a whole (a gzip stream that ends early, a
Parquet file without its footer) hides an unknown number of rows behind the damage, so no honest count exists: it is
a UserError that names the file, and the user decides whether to repair or to remove it.
"""

from dataclasses import dataclass
from typing import Any

from ..stage import UserError

MAX_ROW_BYTES = 64 << 20
"""The longest row, document or page that is held in memory, bytes; a longer one is dropped, never truncated."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file. `key` is its place in the file (a row number or a byte offset), stable between runs."""

    record: dict[str, Any] | list[dict[str, Any]]
    key: str
    where: str
    bytes: int
    unread: tuple[str, ...] = ()
    """Names of fields that the file has beside those of `record`."""

    def fields(self) -> list[str]:
        """The names of all fields that the file has in this row, for messages."""
        return sorted({*self.record, *self.unread})


@dataclass(frozen=True, slots=True)
class Share:
    """Part `index` of `count` equal byte shares of a file, so that one large file is several resumable units."""

    index: int = 0
    count: int = 1

    def bounds(self, size: int) -> tuple[int, int]:
        """First byte and end of the share in a file of `size` bytes; the shares of a file tile it exactly."""
        return size * self.index // self.count, size * (self.index + 1) // self.count


WHOLE = Share()


def damaged(label: str, problem: object) -> UserError:
    """The error for a file whose rows cannot be counted because the file itself is broken."""
    return UserError(f"{label} is damaged: {problem}; repair the file or take it out of the source")
