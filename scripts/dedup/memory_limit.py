"""How much memory a run may use, and how much of that is left for the step in hand.

The limit never changes an answer: it decides how large a run of the external sort is, how many groups of candidates
there are, and when mapped pages are given back. Sizes are 2^10, 2^20, 2^30 bytes.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from pipeline_lib.stage import UserError
from pipeline_lib.stage.memory import free_bytes, give_freed_memory_back, own_resident_bytes

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LEAST_ROOM = 48 << 20
"""Bytes without which no step can work: a batch per worker, Arrow's reading buffers, a run of the sort."""


def parse_size(text: str | int) -> int:
    """Return the bytes of a size such as "512M" or "2G". Raises UserError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise UserError(f"dedup: {text!r} is no memory size; write a number with K, M, G or T, such as 512M")
    return int(float(found[1]) * UNITS[found[2].upper()])


GIVE_BACK_FROM = 1 << 18


@dataclass(frozen=True)
class MemoryLimit:
    """The resident memory that this process may reach, in bytes; None: half of what the machine has free."""

    bytes: int | None = None

    def prepare(self) -> None:
        """Under a limit, make this process give freed memory back at once instead of keeping it for later.

        Arrow's own pool and glibc's heap each keep 100 to 200 MB of freed batches otherwise. Costs page faults.
        """
        if self.bytes is not None:
            give_freed_memory_back(GIVE_BACK_FROM)

    def room(self) -> int:
        """Return the bytes that may still be allocated. Raises UserError when the limit is too small to work at all."""
        if self.bytes is None:
            return self._half_of_free
        used = own_resident_bytes()
        if self.bytes - used < LEAST_ROOM:
            raise UserError(
                f"dedup: max_ram is {self.bytes >> 20}M, of which the program itself takes {used >> 20}M;"
                f" give at least {(used + LEAST_ROOM >> 20) + 1}M"
            )
        return self.bytes - used

    @cached_property
    def _half_of_free(self) -> int:
        return max(free_bytes() // 2, LEAST_ROOM)
