"""CUDA without a GPU: kernels compiled as C++, the threads of a warp as coroutines; and as much of CuPy as dedup uses.

Threads of a warp run one after the other from one barrier (`__syncwarp`, `__ballot_sync`) to the next, in rising or in
falling order: a missing barrier shows in one of them. A warp whose threads stand at different barriers aborts. Streams
of the stand-in CuPy do nothing before they are synchronised, so a buffer or an upload that is used too early shows as
well.
"""

import ctypes
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np

RUNTIME = r"""
#include <ucontext.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct Index { unsigned int x; };
static Index blockIdx, blockDim, gridDim, threadIdx;
#define __global__
#define __device__ static inline
#define __shared__
#define __popc __builtin_popcount
extern "C" unsigned long long shared[1 << 14];
unsigned long long shared[1 << 14];
static ucontext_t scheduler, lanes[32];
static char stacks[32][1 << 16];
static int current, barrier[32], vote[32], falling;
static void (*body)();
static void wait_at(int which) { barrier[current] = which; swapcontext(&lanes[current], &scheduler); }
static void __syncwarp() { wait_at(1); }
static unsigned __ballot_sync(unsigned, int predicate)
{
    vote[current] = predicate;
    wait_at(2);
    unsigned found = 0;
    for (int lane = 0; lane < 32; lane++) if (vote[lane]) found |= 1u << lane;
    wait_at(3);
    return found;
}
static void lane_body() { body(); barrier[current] = 0; }
static void run_warp(unsigned first)
{
    for (int lane = 0; lane < 32; lane++) {
        getcontext(&lanes[lane]);
        lanes[lane].uc_stack.ss_sp = stacks[lane];
        lanes[lane].uc_stack.ss_size = sizeof stacks[lane];
        lanes[lane].uc_link = &scheduler;
        makecontext(&lanes[lane], lane_body, 0);
    }
    do {
        for (int step = 0; step < 32; step++) {
            current = falling ? 31 - step : step;
            threadIdx.x = first + current;
            swapcontext(&scheduler, &lanes[current]);
        }
        for (int lane = 1; lane < 32; lane++)
            if (barrier[lane] != barrier[0]) { fprintf(stderr, "a warp diverges at a barrier\n"); abort(); }
    } while (barrier[0]);
}
static void run_grid(unsigned blocks, unsigned threads, int is_falling)
{
    falling = is_falling; gridDim.x = blocks; blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        memset(shared, 0xA5, sizeof shared);
        for (unsigned first = 0; first < threads; first += 32) run_warp(first);
    }
}
"""

LAUNCHERS = r"""
static void** given;
static void fused() { shingle_signatures(*(const unsigned char**)given[0], *(const long long**)given[1],
    *(long long*)given[2], *(int*)given[3], *(const unsigned short**)given[4], *(const unsigned char**)given[5],
    *(const unsigned long long**)given[6], *(int*)given[7], *(const unsigned**)given[8], *(const unsigned**)given[9],
    *(int*)given[10], *(unsigned**)given[11], *(long long**)given[12]); }
static void minima() { minhash_signatures(*(const unsigned**)given[0], *(const long long**)given[1],
    *(long long*)given[2], *(const unsigned**)given[3], *(const unsigned**)given[4], *(int*)given[5],
    *(unsigned**)given[6]); }
extern "C" void launch_shingle_signatures(unsigned blocks, unsigned threads, int is_falling, void** arguments)
{ given = arguments; body = fused; run_grid(blocks, threads, is_falling); }
extern "C" void launch_minhash_signatures(unsigned blocks, unsigned threads, int is_falling, void** arguments)
{ given = arguments; body = minima; run_grid(blocks, threads, is_falling); }
"""


class Kernels:
    """Compiles the source once per PER_THREAD, and launches its kernels."""

    def __init__(self, folder: Path, source: str, is_falling: bool = False):
        self.folder, self.source, self.is_falling = folder, source, is_falling
        self.libraries: dict[str, ctypes.CDLL] = {}

    def library(self, define: str) -> ctypes.CDLL:
        if define not in self.libraries:
            stem = self.folder / f"kernel{len(self.libraries)}"
            stem.with_suffix(".cpp").write_text(RUNTIME + self.source + LAUNCHERS)
            command = ["g++", "-O1", "-w", "-shared", "-fPIC", define, "-o", f"{stem}.so", f"{stem}.cpp"]
            subprocess.run(command, check=True)
            self.libraries[define] = ctypes.CDLL(f"{stem}.so")
        return self.libraries[define]

    def launch(self, name: str, define: str, grid: tuple, block: tuple, arguments: tuple) -> None:
        held = []
        for value in arguments:
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                value = np.uint64(value.ctypes.data)
            held.append(np.atleast_1d(np.asarray(value)))
        pointers = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
        kernel = getattr(self.library(define), f"launch_{name}")
        kernel(ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), ctypes.c_int(self.is_falling), pointers)


class Stream:
    """Work that is done when somebody waits for it, in order."""

    entered: list["Stream"] = []

    def __init__(self, non_blocking: bool = False):
        self.waiting: list = []

    def __enter__(self):
        Stream.entered.append(self)

    def __exit__(self, *_):
        Stream.entered.pop()

    def synchronize(self) -> None:
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()


class DeviceArray:
    """Memory that only queued work touches."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __getitem__(self, place: slice) -> "DeviceArray":
        return DeviceArray(self.values[place])

    def set(self, host: np.ndarray, stream: Stream) -> None:
        assert host.shape == self.values.shape and host.dtype == self.values.dtype
        stream.waiting.append(lambda: np.copyto(self.values, host))


def stand_in_cupy(kernels: Kernels) -> SimpleNamespace:
    """Return the functions of CuPy that dedup calls."""
    default = Stream()

    def current() -> Stream:
        return Stream.entered[-1] if Stream.entered else default

    class RawKernel:
        def __init__(self, source: str, name: str, options: tuple):
            self.name, self.define = name, options[0]

        def __call__(self, grid, block, arguments, *, shared_mem=0):
            plain = tuple(value.values if isinstance(value, DeviceArray) else value for value in arguments)
            current().waiting.append(lambda: kernels.launch(self.name, self.define, grid, block, plain))

    def asarray(values: np.ndarray) -> DeviceArray:
        """Upload on the current stream: whoever uses the array from another one must wait for this one."""
        host, array = np.array(values), DeviceArray(np.zeros_like(values))
        current().waiting.append(lambda: np.copyto(array.values, host))
        return array

    def asnumpy(array, stream=None, *, out=None, blocking=True):
        if stream is None:
            current().synchronize()
            return array.values.copy()
        assert not blocking
        stream.waiting.append(lambda: np.copyto(out, array.values))
        return out

    return SimpleNamespace(
        RawKernel=RawKernel,
        asnumpy=asnumpy,
        asarray=asarray,
        empty=lambda shape, kind: DeviceArray(np.full(shape, 0x5A, kind)),
        cuda=SimpleNamespace(Stream=Stream, get_current_stream=current),
    )
