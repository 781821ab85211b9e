"""MinHash signatures on an NVIDIA GPU, bit for bit those of minhash.signatures.

How: one warp (32 threads) per document. Each thread keeps four running minima in registers and walks
over the shingle values; all threads of a warp read the same address at once, which the hardware serves as one
broadcast. No shared memory, no synchronisation, no permutations x shingles matrix, and 32-bit unsigned arithmetic
that wraps as it does on the CPU. Documents are spread over the grid in strides of the number of warps.
Splitting and hashing words stays on the CPU in this version, so the GPU takes over the permutations only.
CuPy is imported when the first signature is computed, never before.
"""

from functools import cache
from typing import Any

import numpy as np

from pipeline_lib.stage import UserError

from .minhash import permutations
from .normalise import TextBatch
from .parameters import DedupParameters
from .shingles import shingle_hashes

WARP = 32
THREADS_PER_BLOCK = 256
MAX_BLOCKS = 4096
PER_THREAD = 4
"""Permutations that one thread carries through one walk over the document: 4 x 32 covers the default 112."""

SOURCE = r"""
extern "C" __global__ void minhash_signatures(
    const unsigned int* values, const long long* starts, long long documents,
    const unsigned int* a, const unsigned int* b, int permutations, unsigned int* out)
{
    const long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const long long warps = (long long)gridDim.x * blockDim.x / 32;
    const int lane = threadIdx.x % 32;
    for (long long document = warp; document < documents; document += warps) {
        const long long begin = starts[document], end = starts[document + 1];
        for (int first = 0; first < permutations; first += 128) {
            unsigned int multiplier[4], increment[4], smallest[4];
            for (int k = 0; k < 4; k++) {
                const int p = first + k * 32 + lane;
                multiplier[k] = p < permutations ? a[p] : 0u;
                increment[k] = p < permutations ? b[p] : 0u;
                smallest[k] = 0xFFFFFFFFu;
            }
            for (long long at = begin; at < end; at++) {
                const unsigned int value = values[at];
                for (int k = 0; k < 4; k++) {
                    const unsigned int image = multiplier[k] * value + increment[k];
                    smallest[k] = image < smallest[k] ? image : smallest[k];
                }
            }
            for (int k = 0; k < 4; k++) {
                const int p = first + k * 32 + lane;
                if (p < permutations) out[document * permutations + p] = smallest[k];
            }
        }
    }
}
"""


def _cupy() -> Any | None:
    """Return the cupy module, or None when it is not installed."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy


@cache
def is_available() -> bool:
    """Tell whether CuPy is installed and sees at least one GPU."""
    cupy = _cupy()
    if cupy is None:
        return False
    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


def require() -> None:
    """Raise UserError when there is no usable GPU, saying which part is missing."""
    if not is_available():
        missing = "CuPy is not installed (see requirements-gpu.txt)" if _cupy() is None else "CuPy finds no GPU"
        raise UserError(f"dedup: device is gpu, but {missing}; set device to cpu or auto")


def device_memory() -> tuple[str, int, int]:
    """Return (name, free bytes, total bytes) of the first GPU."""
    cupy = _cupy()
    with cupy.cuda.Device(0):
        free, total = cupy.cuda.runtime.memGetInfo()
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    return name.decode() if isinstance(name, bytes) else name, free, total


@cache
def _kernel() -> Any:
    return _cupy().RawKernel(SOURCE, "minhash_signatures")


def grid_size(documents: int) -> int:
    """Return the number of blocks for so many documents: a warp each, until the grid is full."""
    warps_per_block = THREADS_PER_BLOCK // WARP
    return max(1, min(MAX_BLOCKS, -(-documents // warps_per_block)))


def signatures(hashes: np.ndarray, starts: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return uint32[documents, permutations] like minhash.signatures, computed on the GPU."""
    cupy = _cupy()
    documents = len(starts) - 1
    values = cupy.asarray((hashes >> np.uint64(32)).astype(np.uint32))
    out = cupy.empty((documents, len(a)), cupy.uint32)
    arguments = (
        values,
        cupy.asarray(np.ascontiguousarray(starts)),
        np.int64(documents),
        cupy.asarray(a),
        cupy.asarray(b),
        np.int32(len(a)),
        out,
    )
    _kernel()((grid_size(documents),), (THREADS_PER_BLOCK,), arguments)
    return cupy.asnumpy(out)


def sign(normal: TextBatch, parameters: DedupParameters) -> tuple[np.ndarray, np.ndarray]:
    """Return (minima, shingles) of normalised texts like sketch.cpu_signer, with the minima computed on the GPU."""
    hashes, starts = shingle_hashes(normal, parameters.shingle, parameters.ngram)
    a, b = permutations(parameters.permutations, parameters.seed)
    return signatures(hashes, starts, a, b), np.diff(starts)
