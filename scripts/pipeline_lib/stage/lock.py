"""One writer per stage folder.

A POSIX record lock (fcntl.lockf) on `.lock`: the kernel releases it when the holder dies, however it dies, and forked
workers do not inherit it. The file holds the owner's pid only to say who it is. A pid left behind by a holder that no
longer has the lock is a stale lock, which is taken over with a line saying so.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

from .errors import UserError

LOCK = ".lock"
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length (0: all), pid


def is_locked(path: Path) -> bool:
    """Say whether a process holds the lock at `path`, without taking it: a look must never get in a writer's way.

    A lock that this very process holds does not count.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        wish = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, wish))
    finally:
        os.close(descriptor)
    return answer[0] != fcntl.F_UNLCK


class StageIsLocked(UserError):
    """Another live process writes the stage folder."""


class StageLock:
    """Exclusive right to write one stage folder, held until `release` or the end of the process."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        """Take the lock at `path`. Raises StageIsLocked when another live process holds it."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._holder()
            os.close(self._descriptor)
            raise StageIsLocked(
                f"{path.parent} is being written by process {holder or 'unknown'}; wait for it or stop it"
            ) from None
        if stale := self._holder():
            say(f"took over the lock of process {stale}, which ended without releasing it")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def _holder(self) -> str:
        return os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()

    def release(self) -> None:
        """Give the lock back; the emptied file stays, because removing a locked file would allow two owners."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
