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


def names_open_file(path: Path, descriptor: int) -> bool:
    """Say whether `path` still names the file that is open there, and not another or none: it may have been removed."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


class StageIsLocked(UserError):
    """Another live process writes the stage folder."""


class StageLock:
    """Exclusive right to write one stage folder, held until `release` or the end of the process."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        """Take the lock at `path`. Raises StageIsLocked when another live process holds it."""
        self._path = path
        self._descriptor = self._take()
        while not names_open_file(self._path, self._descriptor):  # the owner before us removed the file that we opened
            os.close(self._descriptor)
            self._descriptor = self._take()
        if stale := _holder(self._descriptor):
            say(f"took over the lock of process {stale}, which ended without releasing it")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def _take(self) -> int:
        """Return a descriptor of the file, opened and locked."""
        while True:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except (FileExistsError, FileNotFoundError):
                if self._path.is_symlink() or self._path.parent.is_symlink() or self._path.parent.is_file():
                    raise
                continue  # the owner before us removed the folder in this very moment
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise StageIsLocked(
                    f"{self._path.parent} is being written by process {holder or 'unknown'}; wait for it or stop it"
                ) from None
            return descriptor

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back; the emptied file stays unless `remove`.

        It is removed while it is locked: who opened it before finds that it is gone, and takes the lock anew.
        """
        if remove:
            self._path.unlink(missing_ok=True)
        else:
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
