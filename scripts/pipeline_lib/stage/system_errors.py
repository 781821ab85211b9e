"""What the machine refused, in one line: memory, a full disk, a size limit, a missing permission."""

import errno
import re

_FULL = r"No space left|os error 28|\d+ requested and \d+ written|Not enough free space to write"
_CPU_TEXTS = ("can't allocate memory", "not enough memory")
# The second is cuBLAS, which has its own workspace; the others are drivers and libraries that allocate for themselves.
_GPU_TEXTS = ("out of memory", "alloc_failed", "failed to allocate", "unable to allocate", "cannot allocate")
_GPU_NAMES = ("cuda", "cublas", "cudnn", "hip", "gpu", "xpu")


def tells_of_a_full_disk(error: BaseException) -> bool:
    """Say whether a full disk is behind an error without an errno: numpy's short write, or a library's own words."""
    behind = [error, error.__cause__, error.__context__]
    return any(re.search(_FULL, str(one)) for one in behind if one)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that memory ran out, on the GPU or on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    on_gpu = any(name in text for name in _GPU_NAMES) and (
        any(words in text for words in _GPU_TEXTS) or "oom" in text.split()
    )
    return isinstance(error, RuntimeError) and (on_gpu or any(words in text for words in _CPU_TEXTS))


def spell_system_error(error: OSError) -> str:
    """Say what the system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or tells_of_a_full_disk(error):
        return (
            f"disk full while writing {error.filename or 'the outputs'}: free some space and start again;"
            " finished units are kept, nothing is half-written"
        )
    if error.errno == errno.EFBIG:
        return f"{error.filename or 'an output'} would pass the file size limit (ulimit -f): raise it and start again"
    what = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)
    return f"the system refused ({what}); mend that and start again; finished units are kept"
