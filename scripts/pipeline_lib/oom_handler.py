"""Running out of memory as an event one recovers from: recognise it, free what can be freed, use smaller batches.

What: a handler that halves the batch size (down to a minimum) each time memory runs out, a decorator that calls a
function again with the smaller size, and an estimate of the size to start with.
Trap: a `with` block cannot run its body again, so `oom_recovery_context` only carries the handler and reports; the
loop inside must ask `handler.handle_oom(error)` and repeat the same batch, or data is lost.
"""

import functools
import gc
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_CPU_ALLOCATOR_TEXT = "can't allocate memory"
_LARGEST_BATCH = 32
_VOCABULARY = 32_768  # for the logits, which at small widths outweigh the layers


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
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.synchronize()

    def is_oom_error(self, error: BaseException) -> bool:
        """Say whether an exception means that memory ran out, on the GPU or on the CPU."""
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        text = str(error).lower()
        on_gpu = ("cuda" in text or "gpu" in text) and ("out of memory" in text or "oom" in text.split())
        return isinstance(error, RuntimeError) and (on_gpu or _CPU_ALLOCATOR_TEXT in text)

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
        if self.retry_count >= self.max_retries or self.batch_size <= self.min_batch_size:
            return False
        self.retry_count += 1
        self.clear_gpu_memory()
        self.reduce_batch_size()
        time.sleep(self.cooldown_seconds)
        return True

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

    The parameter is found whether it was given by keyword, by position or by default. Raises TypeError when the
    function has none, and the original error when the retries or the batch size are used up.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        if "batch_size" not in signature.parameters:
            raise TypeError(f"{function.__name__} has no batch_size parameter that could be reduced")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            handler = OOMHandler(
                bound.arguments["batch_size"], min_batch_size, reduction_factor, max_retries, cooldown_seconds=0.0
            )
            while True:
                bound.arguments["batch_size"] = handler.batch_size
                try:
                    return function(*bound.args, **bound.kwargs)
                except (RuntimeError, MemoryError) as error:
                    if not handler.handle_oom(error):
                        raise

        return call

    return decorate


def get_safe_batch_size(
    model_params_billions: float = 7.0,
    gpu_memory_gb: float | None = None,
    sequence_length: int = 2048,
    dtype_bytes: int = 2,
    safety_factor: float = 0.8,
) -> int:
    """Return how many sequences fit when a Llama of this size trains with AdamW; 0 when not even the model fits.

    Held throughout: weights and gradients in `dtype_bytes`, two float32 moments. Per sequence: 17 values of the width
    per token and layer (the activations of a transformer layer with fused attention; Korthikanti et al., 2022,
    arXiv 2205.05198) and the logits in float32 and `dtype_bytes`. Width and depth follow from the number of parameters
    at the usual 128 columns per layer. Without a GPU and without `gpu_memory_gb` the answer is 1. At most 32.
    """
    if gpu_memory_gb is None:
        import torch

        if not torch.cuda.is_available():
            return 1
        gpu_memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    parameters = model_params_billions * 1e9
    width = (parameters * 128 / 12) ** (1 / 3)
    layers = max(1.0, width / 128)
    held = parameters * (2 * dtype_bytes + 8)
    per_sequence = sequence_length * (17 * dtype_bytes * width * layers + _VOCABULARY * (4 + dtype_bytes))
    room = gpu_memory_gb * 1e9 * safety_factor - held
    return max(0, min(_LARGEST_BATCH, int(room / per_sequence)))
