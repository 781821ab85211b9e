"""Programs that run one at a time, a slice each in turn, so that a machine that slows down is slow for all of them.

How: whoever has no turn is stopped (SIGSTOP), with all its children. What a contender measured with the wall clock
holds the others' turns too; `Ran.seconds` takes them out again.
Trap: a slice has to be long against what a switch costs, which is the caches' content.
"""

import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Ran:
    """A program that has ended: what it printed, and the spans of wall-clock time (Unix seconds) in which it ran."""

    output: str
    running: list[tuple[float, float]]

    def seconds(self, start: float, end: float) -> float:
        """Return how long it ran between two moments."""
        return sum(max(0.0, min(end, stopped) - max(start, began)) for began, stopped in self.running)


class Turns:
    """`run` is called from one thread per contender; each program waits for its turn, also for its first."""

    def __init__(self, slice_seconds: float = 20.0):
        self._slice = slice_seconds
        self._order: deque[object] = deque()
        self._changed = threading.Condition()

    def run(self, command: list[str], environment: dict[str, str]) -> Ran:
        """Run a program to its end and return what came of it; CalledProcessError if its exit code is not 0."""
        me, process, running = object(), None, []
        with self._changed:
            self._order.append(me)
        with tempfile.TemporaryFile("w+") as output:
            try:
                while process is None or process.poll() is None:
                    with self._turn(me):
                        began = time.time()
                        if process is None:
                            process = subprocess.Popen(command, env=environment, stdout=output)
                        else:
                            _wake(process.pid)
                        self._let_run(process)
                        running.append((began, time.time()))
            finally:
                self._leave(me, process)
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command)
            output.seek(0)
            return Ran(output.read(), running)

    @contextmanager
    def _turn(self, me: object) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] is me)
        try:
            yield
        finally:
            with self._changed:
                self._order.rotate(-1)
                self._changed.notify_all()

    def _let_run(self, process: subprocess.Popen) -> None:
        try:
            process.wait(self._slice)
        except subprocess.TimeoutExpired:
            if len(self._order) > 1:
                _stop(process.pid)

    def _leave(self, me: object, process: subprocess.Popen | None) -> None:
        if process is not None and process.poll() is None:
            process.kill()
        with self._changed:
            self._order.remove(me)
            self._changed.notify_all()


def _stop(pid: int) -> None:
    for process in _family(pid):
        process.suspend()


def _wake(pid: int) -> None:
    for process in reversed(_family(pid)):
        process.resume()


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
