"""Work on several cores whose results come back in the order of the items, so that worker count never shows.

Processes, not threads: the work is Python and C code that holds the interpreter lock. At most two items per worker are
in flight, so a slow consumer bounds the memory. Workers ignore SIGINT (the parent decides what to finish) and die with
the parent, so that a killed stage leaves nobody behind. SIGTERM ends them: one that reaches the whole process group
(GNU timeout, systemd) breaks the pool, and runner.py takes that for the interruption it is. They come from a fork
server: a plain fork of a process that has threads (numba, torch, the memory sampler) can inherit a lock that nobody
will ever release.
"""

import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import forkserver, resource_tracker
from typing import Any, TypeVar

from .errors import WorkersLost

Item = TypeVar("Item")
Result = TypeVar("Result")


_not_ready: Exception | None = None
"""In a worker: what its initializer raised."""


def available_cores() -> int:
    """Return the number of cores this process may use, which in containers can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _die_with_parent() -> None:
    """Wait for the end of the process that asked for this worker; the fork server between them would outlive it."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _start_worker(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
    global _not_ready
    if initializer is not None:
        try:
            initializer(*initargs)
        except Exception as error:  # raised for the first item: raised here it would only break the pool
            _not_ready = error


def _answer(function: Callable[[Item], Result], item: Item) -> Result:
    if _not_ready is not None:
        raise _not_ready
    return function(item)


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
    preload: Sequence[str] = (),
) -> Iterator[Result]:
    """Yield function(item) for every item, in item order, computed by `workers` processes.

    `function` must be defined at module level. With one worker everything runs in this process. An exception in a
    worker, or of its initializer, is raised here, when its item's turn comes; WorkersLost when a worker was killed.
    `preload` names modules that are imported once, before the workers are forked, which then share their memory.
    """
    if workers <= 1:
        if initializer is not None:
            initializer(*initargs)
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    try:
        with (
            _fork_server(preload) if preload else nullcontext(),
            ProcessPoolExecutor(workers, context, _start_worker, (initializer, initargs)) as pool,
        ):
            try:
                yield from _in_order(pool, partial(_answer, function), items, 2 * workers)
            except BrokenProcessPool:
                _end_late_workers(pool)
                raise
    except BrokenProcessPool:
        raise WorkersLost(
            "a worker process was killed, probably because memory ran out: lower threads, or clean.max_ram in stage 02,"
            " and start again; what is finished is kept"
        ) from None


def _end_late_workers(pool: ProcessPoolExecutor) -> None:
    """End what was started while the pool broke: it ends those it knew of by then, and waits for all, for ever."""
    for process in list((pool._processes or {}).values()):  # private: there is no public way
        process.kill()


@contextmanager
def _fork_server(preload: Sequence[str]) -> Iterator[None]:
    """Have a fork server with these modules for the block; it ends with it, because it holds their memory.

    It hears nothing of SIGINT, which would end it while it imports, and gets our search path through the environment:
    Python 3.11 drops the one that it is given.
    """
    _end_fork_server()  # one of an earlier pool has other modules
    forkserver.set_forkserver_preload(list(preload))
    resource_tracker.ensure_running()  # which would let SIGINT through again
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    try:
        yield
    finally:
        _end_fork_server()


def _end_fork_server() -> None:
    forkserver._forkserver._stop()  # private: there is no public way; it would stay until this process ends


def ordered_threads(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) in item order, computed by `workers` threads, for kernels without the interpreter lock."""
    if workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from _in_order(pool, function, items, 2 * workers)


def _submit(pool: Executor, function: Callable[[Item], Result], item: Item) -> Future:
    """Raises BrokenProcessPool also when the fork server, of which the pool gets its workers one by one, was killed."""
    try:
        return pool.submit(function, item)
    except (EOFError, OSError) as error:
        lost = isinstance(error, (EOFError, ConnectionError)) or error.errno in (None, errno.EBADF)  # a closed pipe
        if not lost:
            raise  # too many open files, no memory
        raise BrokenProcessPool("no worker could be started") from error


def _in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], in_flight: int
) -> Iterator[Result]:
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(_submit(pool, function, item))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
