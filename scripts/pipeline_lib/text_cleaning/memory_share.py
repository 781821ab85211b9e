"""How much memory stage 02 may take (`clean.max_ram`), and how many cleaning processes fit into it."""

from typing import TYPE_CHECKING

from pipeline_lib.stage import UserError

from .toxicity_backend import scorer_bytes

if TYPE_CHECKING:
    from dedup.memory_limit import MemoryLimit
    from pipeline_lib.config.clean import CleanSettings

CLEANER_BYTES = 350 << 20  # of memory of a process that cleans, measured: libraries and models, batches
IDLE_BYTES = 320 << 20  # of the process that waits for the others, and of their fork server
LEAST_BYTES = 560 << 20  # of a single process that cleans (470 MB) and then sorts


def memory_limit(settings: "CleanSettings") -> "MemoryLimit":
    """Return the memory that the stage may reach. Raises UserError for what is no size, or too little to work in."""
    from dedup.memory_limit import MemoryLimit, parse_size

    if settings.max_ram is None:
        return MemoryLimit()
    try:
        limit = parse_size(settings.max_ram)
    except UserError as error:
        raise UserError(f"clean.max_ram: {str(error).removeprefix('dedup: ')}") from None
    judge = scorer_bytes(settings.toxicity)
    if limit < LEAST_BYTES + judge:
        beside = f", {judge >> 20}M of it to judge toxicity with {settings.toxicity.model}" if judge else ""
        raise UserError(
            f"clean.max_ram is {settings.max_ram}; cleaning needs at least {LEAST_BYTES + judge >> 20}M{beside}"
        )
    return MemoryLimit(limit)


def fitting_workers(wanted: int, limit: "MemoryLimit", settings: "CleanSettings") -> int:
    """Return how many of the wanted cleaning processes fit; one is this process, more have it beside them, idle."""
    if limit.bytes is None:
        return wanted
    return min(wanted, max(1, (limit.bytes - IDLE_BYTES) // (CLEANER_BYTES + scorer_bytes(settings.toxicity))))
