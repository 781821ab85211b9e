"""The GPU kernel without a GPU: its source is run by a C++ compiler, and its steps by numpy, against the CPU kernel."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from dedup import gpu_kernel
from dedup.minhash import EMPTY_MINIMUM, permutations, signatures
from pipeline_lib.stage import UserError

LAUNCHER = """
struct Index {{ unsigned int x; }};
static Index blockIdx, blockDim, gridDim, threadIdx;
#define __global__
{source}
extern "C" void launch(unsigned int blocks, unsigned int threads, const unsigned int* values, const long long* starts,
    long long documents, const unsigned int* a, const unsigned int* b, int permutations, unsigned int* out)
{{
    gridDim.x = blocks; blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
            minhash_signatures(values, starts, documents, a, b, permutations, out);
}}
"""


def random_documents(seed: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 90, documents)
    lengths[0] = 0
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return rng.integers(0, 2**64, int(starts[-1]), dtype=np.uint64), starts


def kernel_in_numpy(values, starts, documents, a, b, permutations, blocks, threads):
    """The kernel's instructions, one lane vector at a time (uint32 arithmetic wraps in numpy as it does in CUDA)."""
    out = np.zeros((documents, permutations), np.uint32)
    warps = blocks * threads // gpu_kernel.WARP
    lane = np.arange(gpu_kernel.WARP)
    for warp in range(warps):
        for document in range(warp, documents, warps):
            for first in range(0, permutations, gpu_kernel.WARP * gpu_kernel.PER_THREAD):
                p = first + np.arange(gpu_kernel.PER_THREAD)[:, None] * gpu_kernel.WARP + lane
                inside = p < permutations
                place = np.where(inside, p, 0)
                multiplier, increment = np.where(inside, a[place], 0), np.where(inside, b[place], 0)
                smallest = np.full(p.shape, EMPTY_MINIMUM, np.uint32)
                for at in range(starts[document], starts[document + 1]):
                    image = multiplier.astype(np.uint32) * values[at] + increment.astype(np.uint32)
                    smallest = np.where(image < smallest, image, smallest)
                out[document, p[inside]] = smallest[inside]
    return out


@pytest.mark.parametrize("count", [1, 31, 32, 112, 128, 129, 260])
def test_the_kernels_steps_give_the_bits_of_the_cpu(count):
    hashes, starts = random_documents(count, 40)
    a, b = permutations(count, 1)
    values = (hashes >> np.uint64(32)).astype(np.uint32)
    found = kernel_in_numpy(values, starts, 40, a, b, count, blocks=2, threads=64)
    assert np.array_equal(found, signatures(hashes, starts, a, b))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("count", [1, 112, 128, 260])
def test_the_kernels_source_compiled_as_cpp_gives_the_bits_of_the_cpu(tmp_path, count):
    (tmp_path / "kernel.cpp").write_text(LAUNCHER.format(source=gpu_kernel.SOURCE))
    library = tmp_path / "kernel.so"
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-o", library, tmp_path / "kernel.cpp"], check=True)
    hashes, starts = random_documents(count, 700)
    a, b = permutations(count, 1)
    values = (hashes >> np.uint64(32)).astype(np.uint32)
    out = np.zeros((700, count), np.uint32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (values, starts, a, b, out)]
    ctypes.CDLL(str(library)).launch(
        ctypes.c_uint(gpu_kernel.grid_size(700)),
        ctypes.c_uint(gpu_kernel.THREADS_PER_BLOCK),
        pointers[0],
        pointers[1],
        ctypes.c_longlong(700),
        pointers[2],
        pointers[3],
        ctypes.c_int(count),
        pointers[4],
    )
    assert np.array_equal(out, signatures(hashes, starts, a, b))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")
def test_the_cuda_compiler_accepts_the_kernel(tmp_path):
    (tmp_path / "kernel.cu").write_text(gpu_kernel.SOURCE)
    done = subprocess.run(
        ["nvcc", "-arch=sm_90", "-ptx", "-o", tmp_path / "kernel.ptx", tmp_path / "kernel.cu"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ".entry minhash_signatures" in (tmp_path / "kernel.ptx").read_text()


def test_a_real_gpu_gives_the_bits_of_the_cpu():
    if not gpu_kernel.is_available():
        pytest.skip("needs CuPy and a GPU")
    hashes, starts = random_documents(1, 5000)
    a, b = permutations(112, 1)
    assert np.array_equal(gpu_kernel.signatures(hashes, starts, a, b), signatures(hashes, starts, a, b))


def test_the_grid_covers_every_document_or_is_full():
    warps_per_block = gpu_kernel.THREADS_PER_BLOCK // gpu_kernel.WARP
    for documents in (0, 1, 8, 9, 10**7):
        blocks = gpu_kernel.grid_size(documents)
        assert blocks >= 1
        assert blocks * warps_per_block >= documents or blocks == gpu_kernel.MAX_BLOCKS


def test_a_required_gpu_that_is_absent_is_an_error_that_says_what_is_missing():
    if gpu_kernel.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="device is gpu, but CuPy"):
        gpu_kernel.require()
