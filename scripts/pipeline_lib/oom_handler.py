"""Running out of memory as an event one recovers from: recognise it, free what can be freed, use smaller batches.

What: a handler that halves the batch size (down to a minimum) each time memory runs out, a decorator that calls a
function again with the smaller size, passes without a gradient in pieces that fit, a memory of the sizes that were
safe in training, which also lets them grow back, and an estimate of the size to start with (memory_estimate.py).
Trap: a `with` block cannot run its body again, so `oom_recovery_context` only carries the handler and reports; the
loop inside must ask `handler.handle_oom(error)` and repeat the same batch, or data is lost.
"""

import functools
import gc
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline_lib.stage import StageFailure
from pipeline_lib.stage.system_errors import is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def free_memory() -> None:
    """Collect garbage and give the GPU allocator's cached blocks back.

    Call it outside of the `except` block: the traceback holds the frames of the failed pass, and they its activations.
    """
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.synchronize()


class PiecesThatFit:
    """Batches of a long pass without a gradient in pieces that fit into memory; the size that fits is remembered.

    For items that do not depend on each other. A size is what a padded batch computes: items x tokens of the longest,
    so what ran out for long ones costs short ones nothing. It is halved when memory runs out, and stays so for the next
    batches: a failure throws a computation away (a generation fails near its end) and empties the allocator's cache.
    """

    def __init__(self, tell: Callable[[], None], alone: str):
        """tell: called when memory ran out; alone: message of the StageFailure when not even one item fits."""
        self._tell = tell
        self._alone = alone
        self._largest: int | None = None

    def run(
        self, do: Callable[[Sequence[Item]], Result], batch: Sequence[Item], lengths: Sequence[int]
    ) -> list[Result]:
        """Return what `do` makes of a batch: one result, or one per piece, in order.

        lengths: tokens of each item of the batch. Raises StageFailure when not even one item fits into memory.
        """
        results, start = [], 0
        while start < len(batch):
            end = self._end(lengths, start)
            try:
                results.append(do(batch[start:end]))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            else:
                start = end
                continue
            # Outside of the except block, whose traceback holds the activations.
            free_memory()
            if end - start == 1:
                raise StageFailure(self._alone)
            self._largest = (end - start) * max(lengths[start:end]) // 2
            self._tell()
        return results

    def _end(self, lengths: Sequence[int], start: int) -> int:
        """Return where the piece that begins at `start` ends: it has at least one item."""
        if self._largest is None:
            return len(lengths)
        end, longest = start + 1, lengths[start]
        while end < len(lengths):
            longest = max(longest, lengths[end])
            if (end + 1 - start) * longest > self._largest:
                break
            end += 1
        return end


class SafeBatchSizes:
    """How many sequences of each context length fit into memory: halved when they did not, doubled after a while.

    After `grow_after` successes at a reduced size the double is tried; each time that fails, the next try waits twice
    as long. The state is JSON and belongs into the checkpoint, because the number of pieces a batch is cut into
    decides how its gradient is rounded.
    """

    def __init__(self, largest: int, grow_after: int = 200, state: dict[str, Any] | None = None):
        """`largest`: the size to start with and to return to, in sequences. Raises ValueError below 1."""
        if largest < 1 or grow_after < 1:
            raise ValueError(f"largest and grow_after must be at least 1, got {largest}, {grow_after}")
        self.largest = largest
        self.grow_after = grow_after
        self.events = int(state["events"]) if state else 0
        # How long to wait doubled with every failure; after how many successes it began may be set anew.
        scale = grow_after / (state or {}).get("grow_after", grow_after)
        self._lengths: dict[str, dict[str, int]] = {
            length: {
                **entry,
                "size": min(entry["size"], largest),
                "patience": max(1, round(scale * entry["patience"])),
            }
            for length, entry in (state["lengths"] if state else {}).items()
        }

    def size(self, length: int) -> int:
        """Return the sequences of `length` tokens to take at once."""
        return self._lengths[str(length)]["size"] if str(length) in self._lengths else self.largest

    def succeeded(self, length: int) -> None:
        """Count a batch that went through at the present size; now and then double the size of the next one."""
        entry = self._lengths.get(str(length))
        if entry is None or entry["size"] >= self.largest:
            return
        entry["successes"] += 1
        if entry["successes"] >= entry["patience"]:
            entry.update(size=min(self.largest, 2 * entry["size"]), successes=0, patience=2 * entry["patience"])

    def failed(self, length: int, tried: int | None = None) -> bool:
        """Halve the size after memory ran out with `tried` sequences at once; return False when it was one already."""
        self.events += 1
        size = min(self.size(length), tried or self.size(length))
        entry = self._lengths.setdefault(str(length), {"size": size, "successes": 0, "patience": self.grow_after})
        if size == 1:
            return False
        entry.update(size=size // 2, successes=0)
        return True

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON."""
        lengths = {length: dict(entry) for length, entry in self._lengths.items()}
        return {"events": self.events, "grow_after": self.grow_after, "lengths": lengths}

    def sizes(self) -> dict[str, int]:
        """Return {context length: sequences} of the lengths at which memory ever ran out."""
        return {length: entry["size"] for length, entry in sorted(self._lengths.items(), key=lambda item: int(item[0]))}


class OOMHandler:
    """Keeps the batch size and the count of out-of-memory events of one training run."""

    def __init__(
        self,
        initial_batch_size: int = 8,
        min_batch_size: int = 1,
        reduction_factor: float = 0.5,
        max_retries: int = 3,
        cooldown_seconds: float = 2.0,
    ):
        """Start at `initial_batch_size` sequences. Raises ValueError for sizes below 1 or a factor outside (0, 1)."""
        if not 1 <= min_batch_size <= initial_batch_size:
            raise ValueError(
                f"need 1 <= min_batch_size <= initial_batch_size, got {min_batch_size}, {initial_batch_size}"
            )
        if not 0 < reduction_factor < 1:
            raise ValueError(f"reduction_factor must lie between 0 and 1, got {reduction_factor}")
        self.initial_batch_size = initial_batch_size
        self.batch_size = initial_batch_size
        self.min_batch_size = min_batch_size
        self.reduction_factor = reduction_factor
        self.max_retries = max_retries
        self.cooldown_seconds = cooldown_seconds
        self.oom_count = 0
        self.retry_count = 0

    def clear_gpu_memory(self) -> None:
        """Collect garbage and give the allocator's cached blocks back."""
        free_memory()

    def is_oom_error(self, error: BaseException) -> bool:
        """Say whether an exception means that memory ran out, on the GPU or on the CPU."""
        return is_out_of_memory(error)

    def reduce_batch_size(self) -> int:
        """Multiply the batch size by the factor, at least the minimum, and return it."""
        self.batch_size = max(self.min_batch_size, int(self.batch_size * self.reduction_factor))
        return self.batch_size

    def handle_oom(self, error: BaseException) -> bool:
        """Prepare to repeat the failed batch in smaller pieces; return False when that is hopeless.

        False: not an out-of-memory error, retries used up, or already at the minimum. True: memory was cleared, the
        batch size reduced, and `cooldown_seconds` waited.
        """
        if not self.is_oom_error(error):
            return False
        self.oom_count += 1
        if self.exhausted:
            return False
        self.retry_count += 1
        self.clear_gpu_memory()
        self.reduce_batch_size()
        time.sleep(self.cooldown_seconds)
        return True

    @property
    def exhausted(self) -> bool:
        """Whether another reduction is impossible: retries used up, or already at the minimum."""
        return self.retry_count >= self.max_retries or self.batch_size <= self.min_batch_size

    def reset(self) -> None:
        """Allow all retries again after a success; the reduced size and the count of events stay."""
        self.retry_count = 0

    def get_stats(self) -> dict[str, int | bool]:
        """Return initial and current batch size (sequences), the number of events, and whether the size was reduced."""
        return {
            "initial_batch_size": self.initial_batch_size,
            "current_batch_size": self.batch_size,
            "total_oom_events": self.oom_count,
            "batch_size_reduced": self.batch_size < self.initial_batch_size,
        }


@contextmanager
def oom_recovery_context(
    initial_batch_size: int = 8, min_batch_size: int = 1, reduction_factor: float = 0.5
) -> Iterator[OOMHandler]:
    """Yield a handler for a training loop, and print what happened at the end if memory ran out."""
    handler = OOMHandler(initial_batch_size, min_batch_size, reduction_factor)
    try:
        yield handler
    finally:
        if handler.oom_count:
            stats = handler.get_stats()
            print(
                f"out of memory {stats['total_oom_events']} times: batch size {stats['initial_batch_size']} ->"
                f" {stats['current_batch_size']}"
            )


def with_oom_retry(
    max_retries: int = 3, reduction_factor: float = 0.5, min_batch_size: int = 1
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that has a `batch_size` parameter: when memory runs out, call it again with a smaller one.

    The parameter is found whether it was given by keyword, by position or by default; None means 8, as for OOMHandler,
    and a size below `min_batch_size` is not reduced. Raises TypeError when the function has no such parameter, and the
    original error when the retries or the batch size are used up.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        if "batch_size" not in signature.parameters:
            raise TypeError(f"{function.__name__} has no batch_size parameter that could be reduced")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            wanted = 8 if bound.arguments["batch_size"] is None else bound.arguments["batch_size"]
            least = min(min_batch_size, wanted)
            handler = OOMHandler(wanted, least, reduction_factor, max_retries, cooldown_seconds=0.0)
            while True:
                bound.arguments["batch_size"] = handler.batch_size
                try:
                    return function(*bound.args, **bound.kwargs)
                except (RuntimeError, MemoryError) as error:
                    if not handler.is_oom_error(error) or handler.exhausted:
                        raise
                    failure = error.with_traceback(None)  # the frames of the failed call hold its memory
                handler.handle_oom(failure)

        return call

    return decorate
