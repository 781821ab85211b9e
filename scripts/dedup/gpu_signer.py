"""Signatures of texts on the GPU while the next ones travel: two buffers in pinned memory, each with its own stream.

How: a batch is cut into slices of whole documents. A slice is copied into a buffer; its transfer, its kernel and the
transfer of its minima are queued on that buffer's stream; meanwhile the next slice is copied into the other buffer. A
buffer is used again when its stream is done. Pinned memory is what lets the device copy without the host's help.
Not yet timed on a GPU: the corpus is read in batches of about 2 MB, so that today the overlap is between the threads of
a run, and within a batch only for callers that pass larger ones.
Cost: buffers of about 2 x (SLICE_BYTES + the minima of a slice) on both sides, per thread that signs.
"""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline_lib.stage import StageFailure

from .gpu_device import compiled, cupy_module, pinned_memory
from .gpu_kernel import SHINGLE_SIGNATURES, THREADS_PER_BLOCK, grid_size, shared_bytes
from .minhash import permutations, signatures
from .normalise import TextBatch, tables
from .parameters import DedupParameters
from .shingles import UNITS, position_multipliers, shingle_hashes

SLICE_BYTES = 8 << 20
SLICE_DOCUMENTS = 1 << 14
COMPARED = 256
"""Documents of a thread's first batch that are signed on the CPU as well: no GPU is trusted unseen."""


def slices(starts: np.ndarray) -> list[tuple[int, int]]:
    """Cut documents into runs [low, high) of up to SLICE_BYTES and SLICE_DOCUMENTS; a longer document is one alone."""
    cuts, low = [], 0
    while low < len(starts) - 1:
        fitting = int(np.searchsorted(starts, starts[low] + SLICE_BYTES, side="right")) - 1
        high = max(min(fitting, low + SLICE_DOCUMENTS), low + 1)
        cuts.append((low, high))
        low = high
    return cuts


@dataclass
class Buffer:
    """Memory for one slice on both sides, grown when a slice needs more, and the stream on which it is used."""

    cupy: Any
    stream: Any
    pinned: dict[str, np.ndarray] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)

    def pair(self, name: str, count: int, kind: type) -> tuple[np.ndarray, Any]:
        """Return `count` entries of pinned host memory and of device memory. The stream must be done."""
        if name not in self.pinned or len(self.pinned[name]) < count:
            size = 1 << (max(count, 1) - 1).bit_length()
            self.pinned[name] = pinned_memory(size, kind)
            self.device[name] = self.cupy.empty(size, kind)
        return self.pinned[name][:count], self.device[name][:count]


class GpuSigner:
    """Signs batches with the parameters' shingles and permutations; to be used by one thread."""

    def __init__(self, parameters: DedupParameters):
        self.parameters = parameters
        cupy = cupy_module()
        frozen = tables()
        self.constants = [
            cupy.asarray(values)
            for values in (
                frozen.page,
                frozen.kind,
                position_multipliers(parameters.ngram),
                *permutations(parameters.permutations, parameters.seed),
            )
        ]
        cupy.cuda.get_current_stream().synchronize()  # the buffers' streams do not wait for these uploads
        self.cupy = cupy
        self.buffers = [Buffer(cupy, cupy.cuda.Stream(non_blocking=True)) for _ in range(2)]

    def sign(self, normal: TextBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return (minima uint32[documents, permutations], shingles int64[documents]) of normalised texts."""
        minima = np.empty((len(normal.starts) - 1, self.parameters.permutations), np.uint32)
        shingles = np.empty(len(minima), np.int64)
        under_way: list[tuple[Buffer, int, int]] = []
        for number, (low, high) in enumerate(slices(normal.starts)):
            if len(under_way) == len(self.buffers):
                _collect(*under_way.pop(0), minima, shingles)
            buffer = self.buffers[number % len(self.buffers)]
            self._send(buffer, normal, low, high)
            under_way.append((buffer, low, high))
        for slice_under_way in under_way:
            _collect(*slice_under_way, minima, shingles)
        return minima, shingles

    def _send(self, buffer: Buffer, normal: TextBatch, low: int, high: int) -> None:
        buffer.stream.synchronize()  # done already, unless the batch before was given up
        first, last = int(normal.starts[low]), int(normal.starts[high])
        count, width = high - low, self.parameters.permutations
        text, device_text = buffer.pair("text", last - first, np.uint8)
        starts, device_starts = buffer.pair("starts", count + 1, np.int64)
        minima, device_minima = buffer.pair("minima", count * width, np.uint32)
        shingles, device_shingles = buffer.pair("shingles", count, np.int64)
        text[:] = normal.data[first:last]
        starts[:] = normal.starts[low : high + 1] - first
        page, kinds, multipliers, a, b = self.constants
        with buffer.stream:
            device_text.set(text, buffer.stream)
            device_starts.set(starts, buffer.stream)
            compiled(SHINGLE_SIGNATURES, width)(
                (grid_size(count),),
                (THREADS_PER_BLOCK,),
                (
                    device_text,
                    device_starts,
                    np.int64(count),
                    np.int32(UNITS[self.parameters.shingle] == UNITS["character"]),
                    page,
                    kinds,
                    multipliers,
                    np.int32(self.parameters.ngram),
                    a,
                    b,
                    np.int32(width),
                    device_minima,
                    device_shingles,
                ),
                shared_mem=shared_bytes(self.parameters.ngram),
            )
            self.cupy.asnumpy(device_minima, buffer.stream, out=minima, blocking=False)
            self.cupy.asnumpy(device_shingles, buffer.stream, out=shingles, blocking=False)


def _collect(buffer: Buffer, low: int, high: int, minima: np.ndarray, shingles: np.ndarray) -> None:
    buffer.stream.synchronize()
    minima[low:high] = buffer.pinned["minima"][: (high - low) * minima.shape[1]].reshape(high - low, -1)
    shingles[low:high] = buffer.pinned["shingles"][: high - low]


_signers = threading.local()


def sign(normal: TextBatch, parameters: DedupParameters) -> tuple[np.ndarray, np.ndarray]:
    """Return (minima, shingles) of normalised texts like sketch.cpu_signer, from shingles made on the GPU.

    The first documents that a thread signs are signed on the CPU as well. Raises StageFailure when the bits differ.
    """
    signer = getattr(_signers, "signer", None)
    if signer is None or signer.parameters != parameters:
        signer = GpuSigner(parameters)
        _compare_with_cpu(signer, normal)
        _signers.signer = signer
    return signer.sign(normal)


def _compare_with_cpu(signer: GpuSigner, normal: TextBatch) -> None:
    few = TextBatch(normal.data, normal.starts[: COMPARED + 1])
    hashes, starts = shingle_hashes(few, signer.parameters.shingle, signer.parameters.ngram)
    a, b = permutations(signer.parameters.permutations, signer.parameters.seed)
    minima, shingles = signer.sign(few)
    if not np.array_equal(minima, signatures(hashes, starts, a, b)) or not np.array_equal(shingles, np.diff(starts)):
        raise StageFailure("dedup: this GPU computes other signatures than the CPU; set device to cpu, and report it")
