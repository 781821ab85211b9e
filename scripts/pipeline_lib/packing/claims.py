"""The claim table: several processes share a list of units of work, and each unit is made once.

What: a file with one byte per unit. Whoever holds the lock on a byte is making that unit; a unit is finished when its
output, renamed into place, is there. One process may go through the list from the front, another from the back.
How: POSIX record locks (fcntl.lockf) on single bytes. The kernel gives a lock back when its holder dies, however it
dies, so there are no stale claims to detect, no times to compare and no process numbers to trust; it works between
machines on a shared file system whose lock service runs.
The process that publishes the result closes the table first: once the outputs move, their absence means nothing, and a
process that comes late must not take them for unfinished. The folder of the tables is made by the process that will
publish, and by no other: where it is gone, so is the work.
Trap: closing any descriptor of a file gives all locks of the process on that file back, so there must be one table
object per file and process.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline_lib.stage.lock import names_open_file

_POLL_SECONDS = 0.05


def closing_mark(folder: Path) -> Path:
    """Return the file whose presence in a folder of claim tables says that their outputs are being published."""
    return folder / "closed"


class ClaimTable:
    """The units of one list, shared by every process that opens the same file with the same keys."""

    def __init__(self, path: Path, keys: Sequence[str]):
        """Open the table. Raises FileNotFoundError when its folder is gone: the result was published."""
        self._path = path
        self._places = {key: place for place, key in enumerate(keys)}
        self._closed = closing_mark(path.parent)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def release(self) -> None:
        """Give every claim back."""
        os.close(self._descriptor)

    def give_back(self, key: str) -> None:
        """Give the claim on one unit back, which is finished now."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, self._places[key])

    def unfinished(
        self,
        finished: Callable[[str], bool],
        backwards: bool = False,
        found: Callable[[str], None] = lambda key: None,
        waits: Callable[[], None] = lambda: None,
    ) -> Iterator[str]:
        """Yield each unit that is not finished once it is claimed; the claim ends with `give_back`.

        Ends when all units are finished or were yielded: units that others hold are waited for, and taken over when the
        holder dies. `found` is told of every unit that this process did not make; `waits` is called again and again
        while others hold all that is left, and may raise. Raises FileNotFoundError when the result is being published,
        or the work was discarded.
        """
        waiting = list(self._places)
        if backwards:
            waiting.reverse()
        while waiting:
            held_by_others = []
            for key in waiting:
                if finished(key):
                    found(key)
                elif not self._claim(self._places[key]):
                    held_by_others.append(key)
                elif finished(key):  # its maker let it go between the two looks
                    self.give_back(key)
                    found(key)
                elif self._closed.exists() or not names_open_file(self._path, self._descriptor):
                    # asked after `finished`; other work may have begun in a folder of that name
                    raise FileNotFoundError(f"{key} was published or discarded")
                else:
                    yield key
            if len(held_by_others) == len(waiting):
                waits()
                time.sleep(_POLL_SECONDS)
            waiting = held_by_others

    def _claim(self, place: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            return False
        return True
