"""Run an iterator in a thread, a few items ahead: chunks are read and decoded while the model computes.

A thread suffices, and no process has to be fed: reading, LZ4 and the compiled kernels release the interpreter lock.
"""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1


def prefetched(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Yield what `items` yields, in its order, made by a thread that is at most `depth` items ahead.

    An exception of `items` is raised here, where it happened. The thread ends when this generator is closed.
    """
    if depth <= 0:
        yield from items
        return
    ready: queue.Queue = queue.Queue(depth)
    left = threading.Event()

    def offer(kind: str, value: object) -> bool:
        while not left.is_set():
            try:
                ready.put((kind, value), timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer("item", item):
                    return
        except BaseException as error:
            offer("error", error)
            return
        offer("end", None)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        left.set()
        thread.join()
