"""Peak memory of a process and its children, sampled, because the kernel only keeps peaks of single processes.

Trap: the resident sizes of several processes must not be added up. Libraries, and whatever was there before a fork, lie
in memory once and in every process's figure. The kernel's proportional set size divides each page by the number of
processes that have it, so that adding up is right. It costs a walk over the page tables (15 ms per GB), so it is asked
for only where the resident sizes are at their highest since a process came or went.

And the memory that a process keeps although it freed it: Arrow's pool and glibc's heap hold 100 to 250 MB of it.
"""

import ctypes
import os
import resource
import sys
import threading
from pathlib import Path

_SAMPLE_SECONDS = 0.25
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def resident_bytes() -> dict[int, int]:
    """Return {process: resident bytes} of this process and all its descendants now."""
    import psutil

    found = {}
    me = psutil.Process(os.getpid())
    for process in [me, *me.children(recursive=True)]:
        try:
            found[process.pid] = process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended between the listing and the question
            continue
    return found


def own_resident_bytes() -> int:
    """Return the resident bytes of this process now."""
    import psutil

    return psutil.Process().memory_info().rss


def tree_bytes(resident: dict[int, int]) -> int:
    """Return the bytes of memory that these processes take together, shared pages once.

    `resident` stands in for a process that has ended since, and where the kernel does not tell shares (no Linux).
    """
    if len(resident) == 1:
        return sum(resident.values())
    return sum(_proportional_bytes(process) or size for process, size in resident.items())


def _proportional_bytes(process: int) -> int | None:
    try:
        with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
    except OSError:
        return None


class PeakMemory:
    """Samples the process tree in a daemon thread; `stop` returns the highest figure in bytes."""

    def __init__(self) -> None:
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        processes: set[int] = set()
        highest = 0  # sum of resident sizes since `processes` are the ones that there are
        while not self._done.wait(_SAMPLE_SECONDS):
            resident = resident_bytes()
            if resident.keys() != processes:
                processes, highest = set(resident), 0
            total = sum(resident.values())
            if total > max(highest, self._peak):
                highest = total
                self._peak = max(self._peak, tree_bytes(resident))

    def stop(self) -> int:
        """End the sampling and return the peak in bytes, at least the kernel's own peak of this process."""
        self._done.set()
        self._thread.join()
        return max(self._peak, own_peak_bytes())


CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees its limits (cgroup v2)."""


def container_limit(cgroup: Path = CGROUP) -> int | None:
    """Return how much memory this container may use, in bytes; None outside of one, or without a limit."""
    limit = (cgroup / "memory.max").read_text().strip() if (cgroup / "memory.max").is_file() else "max"
    return None if limit == "max" else int(limit)


def free_bytes(cgroup: Path = CGROUP) -> int:
    """Return the memory that can still be had, of the machine or of the container, whichever has less."""
    import psutil

    available, limit = psutil.virtual_memory().available, container_limit(cgroup)
    if limit is None:
        return available
    counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    used = int((cgroup / "memory.current").read_text()) - int(counts["inactive_file"])  # pages that are given up first
    return min(available, max(0, limit - used))


def own_peak_bytes() -> int:
    """Return the kernel's peak of this process in bytes.

    Trap: ru_maxrss starts at the size of the process that started this one, which may be far larger; VmHWM does not.
    """
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def give_freed_memory_back(least: int) -> None:
    """From now on, let freed blocks of `least` bytes or more, Arrow's too, go back to the kernel at once.

    By itself glibc's threshold grows to 32 MB, and what lies between two blocks that live stays. Costs page faults, the
    more the smaller `least` is.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only; other heaps do so by themselves
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, least)
        mallopt(_M_TRIM_THRESHOLD, least)
