"""The GPU through CuPy: whether there is one, its memory, and the compiled kernels of gpu_kernel.py.

CuPy is imported when the first of these is called, never before.
"""

from functools import cache
from typing import Any

import numpy as np

from pipeline_lib.stage import UserError

from .gpu_kernel import SIGNATURES, SOURCE, THREADS_PER_BLOCK, grid_size, per_thread


def cupy_module() -> Any | None:
    """Return the cupy module, or None when it is not installed."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy


@cache
def is_available() -> bool:
    """Tell whether CuPy is installed and sees at least one GPU."""
    cupy = cupy_module()
    if cupy is None:
        return False
    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


def require() -> None:
    """Raise UserError when there is no usable GPU, saying which part is missing."""
    if not is_available():
        missing = "CuPy is not installed (see requirements-gpu.txt)" if cupy_module() is None else "CuPy finds no GPU"
        raise UserError(f"dedup: device is gpu, but {missing}; set device to cpu or auto")


def device_memory() -> tuple[str, int, int]:
    """Return (name, free bytes, total bytes) of the first GPU."""
    cupy = cupy_module()
    with cupy.cuda.Device(0):
        free, total = cupy.cuda.runtime.memGetInfo()
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    return name.decode() if isinstance(name, bytes) else name, free, total


def pinned_memory(count: int, kind: type) -> np.ndarray:
    """Return an array that the GPU can read and write by itself while the CPU does something else."""
    from cupyx import empty_pinned

    return empty_pinned(count, kind)


@cache
def compiled(name: str, permutations: int) -> Any:
    """Return a kernel of the source, compiled for so many permutations."""
    return cupy_module().RawKernel(SOURCE, name, options=(f"-DPER_THREAD={per_thread(permutations)}",))


def signatures(hashes: np.ndarray, starts: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return uint32[documents, permutations] like minhash.signatures, computed on the GPU from shingle hashes."""
    cupy = cupy_module()
    documents = len(starts) - 1
    values = cupy.asarray((hashes >> np.uint64(32)).astype(np.uint32))
    out = cupy.empty((documents, len(a)), np.uint32)
    arguments = (
        values,
        cupy.asarray(np.ascontiguousarray(starts)),
        np.int64(documents),
        cupy.asarray(a),
        cupy.asarray(b),
        np.int32(len(a)),
        out,
    )
    compiled(SIGNATURES, len(a))((grid_size(documents),), (THREADS_PER_BLOCK,), arguments)
    return cupy.asnumpy(out)
