"""Keep freed memory in the process instead of giving it back to the kernel after every tensor.

glibc serves allocations above 128 kB (at most 32 MB, as it adapts) by a mapping of their own and returns it on free.
A training step on the CPU allocates and frees hundreds of such tensors, and the kernel must hand out and zero every
page again: 25 to 40 % of the processor time of a small model's step under TRL, 3 to 5 % of a pretraining step. With
both thresholds raised, freed blocks are reused. Cost: the process keeps its peak size, and fragmentation added 10 to
40 % to that peak where it was measured.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for this process; return False where the C library is another one."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
