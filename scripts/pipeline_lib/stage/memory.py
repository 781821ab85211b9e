"""Peak memory of a process and its children, sampled, because the kernel only keeps peaks of single processes."""

import os
import resource
import threading

_SAMPLE_SECONDS = 0.25


def tree_bytes() -> int:
    """Return the resident bytes of this process and all its descendants now.

    Pages shared between forked processes are counted in each of them, so the figure errs on the high side.
    """
    import psutil

    total = 0
    me = psutil.Process(os.getpid())
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended between the listing and the question
            continue
    return total


class PeakMemory:
    """Samples the process tree in a daemon thread; `stop` returns the highest figure in bytes."""

    def __init__(self) -> None:
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, tree_bytes())

    def stop(self) -> int:
        """End the sampling and return the peak in bytes, at least the kernel's own peak of this process."""
        self._done.set()
        self._thread.join()
        return max(self._peak, own_peak_bytes())


def own_peak_bytes() -> int:
    """Return the kernel's peak of this process in bytes.

    Trap: ru_maxrss starts at the size of the process that started this one, which may be far larger; VmHWM does not.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass  # no Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
