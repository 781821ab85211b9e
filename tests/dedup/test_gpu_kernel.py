"""The GPU kernels without a GPU: their source is run by a C++ compiler, and their steps by numpy, against the CPU's."""

import random
import shutil
import subprocess

import numpy as np
import pytest
from cuda_in_cpp import Kernels, stand_in_cupy

from dedup import DedupParameters, compute_minhash_signatures_gpu, find_duplicates, gpu_device, gpu_kernel, gpu_signer
from dedup.minhash import EMPTY_MINIMUM, band_keys, permutations, signatures
from dedup.normalise import TextBatch, batch_of, normalise, tables
from dedup.shingles import position_multipliers
from dedup.sketch import cpu_signer
from dedup.unicode_fold import MARK, SEPARATOR, SINGLE, WORD
from pipeline_lib.stage import StageFailure, UserError

ALPHABETS = [
    "ab1_ .,\n",
    "aé ÀßμДж中文字ไทย한글\u0301\u0304\u200b ",
    "a\u0301\u0302中\u3099𝒳😀\U00020000 -",
    "abcdefghijklmnopqrstuvwxyz",
]


def random_texts(seed: int, documents: int, longest: int = 400) -> TextBatch:
    """Normal forms of random text in many scripts, with empty documents, long words and bytes that are not UTF-8."""
    rng = random.Random(seed)
    texts = ["", "one two three four five six", "a" * 70, "中" * 40, "\u0301x y\u0301z"]
    for _ in range(documents - len(texts)):
        alphabet = rng.choice(ALPHABETS)
        texts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(0, longest))))
    batch = batch_of(texts)
    data = batch.data.copy()
    data[np.random.default_rng(seed).integers(0, len(data), 9)] = 0xE3
    return normalise(TextBatch(data, batch.starts))


def constants(parameters: DedupParameters) -> tuple:
    frozen = tables()
    multipliers = position_multipliers(parameters.ngram)
    return frozen.page, frozen.kind, multipliers, *permutations(parameters.permutations, parameters.seed)


class KernelInNumpy:
    """The fused kernel's instructions, one lane vector at a time; unsigned arithmetic wraps in numpy as in CUDA."""

    def __init__(self, normal: TextBatch, parameters: DedupParameters):
        self.text, self.starts = normal.data, normal.starts
        self.page, self.kinds, self.multipliers, self.a, self.b = constants(parameters)
        self.by_character, self.ngram = parameters.shingle == "character", parameters.ngram

    def continues(self, at: int) -> bool:
        return self.text[at] & 0xC0 == 0x80

    def length_at(self, at: int) -> int:
        lead = self.text[at]
        return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4

    def kind_at(self, at: int) -> int:
        lead = int(self.text[at])
        if lead < 0x80:
            return WORD if chr(lead) in "abcdefghijklmnopqrstuvwxyz0123456789_" else SEPARATOR
        length = self.length_at(at)
        code_point = lead & (0x7F >> length)
        for k in range(1, length):
            code_point = code_point << 6 | int(self.text[at + k]) & 0x3F
        return int(self.kinds[int(self.page[code_point >> 8]) << 8 | code_point & 0xFF])

    def token_kind(self, begin: int, at: int) -> int:
        if self.continues(at):
            return SEPARATOR
        kind = self.kind_at(at)
        if kind != WORD:
            return kind if kind == SINGLE else SEPARATOR
        while at > begin:
            at -= 1
            while self.continues(at):
                at -= 1
            before = self.kind_at(at)
            if before == WORD:
                return SEPARATOR
            if before != MARK:
                break
        return WORD

    def token_end(self, at: int, end: int, kind: int) -> int:
        at += self.length_at(at)
        while at < end:
            following = self.kind_at(at)
            if following in (SEPARATOR, SINGLE) or (following == WORD and kind == SINGLE):
                break
            at += self.length_at(at)
        return at

    def lane(self, begin: int, at: int, end: int) -> tuple[bool, int]:
        if at >= end:
            return False, 0
        if self.by_character:
            return not self.continues(at), at + self.length_at(at)
        kind = self.token_kind(begin, at)
        return kind != SEPARATOR, self.token_end(at, end, kind) if kind != SEPARATOR else 0

    def run(self, hash_token, mix) -> tuple[np.ndarray, np.ndarray]:
        """Return (minima, shingles) of all documents."""
        documents = len(self.starts) - 1
        out = np.zeros((documents, len(self.a)), np.uint32)
        shingles = np.zeros(documents, np.int64)
        lanes = np.arange(gpu_kernel.WARP)
        for document in range(documents):
            begin, end = self.starts[document : document + 2].tolist()
            tokens = np.zeros(gpu_kernel.WARP + self.ngram - 1, np.uint64)
            smallest = np.full(len(self.a), EMPTY_MINIMUM, np.uint32)
            held = 0
            for here in range(begin, end, gpu_kernel.WARP):
                found = [self.lane(begin, here + lane, end) for lane in lanes.tolist()]
                begins = np.array([is_begin for is_begin, _ in found])
                place = held + np.cumsum(begins) - begins
                for lane in np.flatnonzero(begins).tolist():
                    token = self.text[here + lane : found[lane][1]].tobytes().decode()
                    tokens[place[lane]] = hash_token(token)
                held += int(begins.sum())
                ready = held - self.ngram + 1
                if ready <= 0:
                    continue
                for lane in range(ready):
                    total = np.sum(tokens[lane : lane + self.ngram] * self.multipliers, dtype=np.uint64)
                    value = np.uint32(mix(int(total)) >> 32)
                    smallest = np.minimum(smallest, self.a * value + self.b)
                tokens[: self.ngram - 1] = tokens[ready : ready + self.ngram - 1].copy()
                held = self.ngram - 1
                shingles[document] += ready
            out[document] = smallest
        return out, shingles


CASES = [
    DedupParameters(),
    DedupParameters(shingle="character", bands=20, rows=13),
    DedupParameters(ngram=1, bands=1, rows=1),
    DedupParameters(ngram=40, bands=2, rows=64),
]


def same(found: tuple, parameters: DedupParameters, normal: TextBatch) -> None:
    minima, shingles = cpu_signer(normal, parameters)
    assert np.array_equal(found[1], shingles) and np.array_equal(found[0], minima)
    keys = [band_keys(values, parameters.bands, parameters.rows) for values in (found[0], minima)]
    assert np.array_equal(*keys)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_fused_kernels_steps_in_numpy_give_the_bits_of_the_cpu(oracle, number):
    normal = random_texts(number, 30, 150)
    found = KernelInNumpy(normal, CASES[number]).run(oracle.token_hash, oracle.mix)
    same(found, CASES[number], normal)
    assert (found[1] > 0).any() and (found[1] == 0).any()


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module", params=[False, True], ids=["rising", "falling"])
def kernels(request, tmp_path_factory):
    """The source as C++, with the threads of a warp in rising and in falling order."""
    return Kernels(tmp_path_factory.mktemp("kernels"), gpu_kernel.SOURCE, request.param)


@needs_compiler
@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_fused_kernels_source_as_cpp_gives_the_bits_of_the_cpu(kernels, number):
    parameters, normal = CASES[number], random_texts(7 + number, 60)
    documents, width = len(normal), parameters.permutations
    page, kinds, multipliers, a, b = constants(parameters)
    minima, shingles = np.zeros((documents, width), np.uint32), np.zeros(documents, np.int64)
    text = normal.data[: normal.starts[-1]].copy()
    kernels.launch(
        gpu_kernel.SHINGLE_SIGNATURES,
        f"-DPER_THREAD={gpu_kernel.per_thread(width)}",
        (2,),
        (64,),
        (
            *(text, normal.starts, np.int64(documents), np.int32(parameters.shingle == "character")),
            *(page, kinds, multipliers, np.int32(parameters.ngram)),
            *(a, b, np.int32(width), minima, shingles),
        ),
    )
    same((minima, shingles), parameters, normal)


@pytest.fixture
def stand_in(kernels, monkeypatch):
    """CuPy replaced by the stand-in whose streams work late."""
    cupy = stand_in_cupy(kernels)
    gpu_device.compiled.cache_clear()
    monkeypatch.setattr(gpu_device, "cupy_module", lambda: cupy)
    monkeypatch.setattr(gpu_signer, "cupy_module", lambda: cupy)
    monkeypatch.setattr(gpu_device, "is_available", lambda: True)
    monkeypatch.setattr(gpu_signer, "pinned_memory", lambda count, kind: np.full(count, 0xA5, kind))
    monkeypatch.setattr(gpu_signer, "_signers", gpu_signer.threading.local())
    yield cupy
    gpu_device.compiled.cache_clear()


@needs_compiler
@pytest.mark.parametrize(("size", "count"), [(1, 100), (700, 100), (1 << 20, 7), (1 << 20, 1000)])
def test_slices_of_any_size_pass_through_two_buffers_with_the_bits_of_the_cpu(stand_in, monkeypatch, size, count):
    monkeypatch.setattr(gpu_signer, "SLICE_BYTES", size)
    monkeypatch.setattr(gpu_signer, "SLICE_DOCUMENTS", count)
    parameters = DedupParameters()
    for seed in range(2):  # the second batch meets the buffers of the first
        normal = random_texts(seed, 25)
        same(gpu_signer.sign(normal, parameters), parameters, normal)
    nothing = normalise(batch_of([]))
    same(gpu_signer.sign(nothing, parameters), parameters, nothing)


def test_the_constants_are_there_before_streams_that_wait_for_nobody_use_them(stand_in):
    parameters = DedupParameters()
    found = [array.values for array in gpu_signer.GpuSigner(parameters).constants]
    assert all(map(np.array_equal, found, constants(parameters)))


def test_slices_hold_whole_documents_within_the_limits(monkeypatch):
    monkeypatch.setattr(gpu_signer, "SLICE_BYTES", 10)
    monkeypatch.setattr(gpu_signer, "SLICE_DOCUMENTS", 3)
    starts = np.array([0, 4, 8, 12, 12, 12, 12, 40, 41])
    assert gpu_signer.slices(starts) == [(0, 2), (2, 5), (5, 6), (6, 7), (7, 8)]
    assert gpu_signer.slices(starts[:1]) == []


@needs_compiler
def test_a_run_with_the_device_gpu_removes_what_the_cpu_removes(stand_in, oracle, tmp_path):
    files = oracle.write_shards(tmp_path, oracle.Planted(seed=5, originals=12).records)
    found = [
        find_duplicates(files, DedupParameters(device=device), 1, tmp_path / device).to_pylist()
        for device in ("gpu", "cpu")
    ]
    assert found[0] == found[1] and found[0]


@needs_compiler
def test_a_gpu_that_computes_other_bits_stops_the_run(stand_in, monkeypatch):
    right = stand_in.asnumpy

    def wrong(array, stream=None, *, out=None, blocking=True):
        right(array, stream, out=out, blocking=blocking)
        stream.waiting.append(lambda: out.__setitem__(-1, out[-1] ^ 1))

    monkeypatch.setattr(stand_in, "asnumpy", wrong)
    with pytest.raises(StageFailure, match="other signatures than the CPU; set device to cpu"):
        gpu_signer.sign(random_texts(2, 9), DedupParameters())


@needs_compiler
def test_minima_of_given_shingles_are_those_of_the_cpu(stand_in):
    rng = np.random.default_rng(3)
    shingles = [rng.integers(0, 2**64, int(size), dtype=np.uint64) for size in rng.integers(0, 90, 40)] + [None]
    found = [compute_minhash_signatures_gpu(shingles, 129, device, batch_size=7) for device in ("cuda", "cpu")]
    assert np.array_equal(*found)
    hashes = np.concatenate(shingles[:-1])
    starts = np.cumsum([0, *map(len, shingles[:-1])])
    a, b = permutations(129, 1)
    assert np.array_equal(gpu_device.signatures(hashes, starts, a, b), signatures(hashes, starts, a, b))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")
def test_the_cuda_compiler_accepts_the_kernels(tmp_path):
    (tmp_path / "kernel.cu").write_text(gpu_kernel.SOURCE)
    command = ["nvcc", "-arch=sm_90", "-DPER_THREAD=4", "-ptx", "-o", tmp_path / "kernel.ptx", tmp_path / "kernel.cu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in (gpu_kernel.SIGNATURES, gpu_kernel.SHINGLE_SIGNATURES):
        assert f".entry {name}" in (tmp_path / "kernel.ptx").read_text()


def test_a_real_gpu_gives_the_bits_of_the_cpu():
    if not gpu_device.is_available():
        pytest.skip("needs CuPy and a GPU")
    for parameters in CASES:
        normal = random_texts(1, 5000)
        same(gpu_signer.sign(normal, parameters), parameters, normal)


def test_the_grid_covers_every_document_or_is_full():
    warps_per_block = gpu_kernel.THREADS_PER_BLOCK // gpu_kernel.WARP
    for documents in (0, 1, 8, 9, 10**7):
        blocks = gpu_kernel.grid_size(documents)
        assert blocks >= 1
        assert blocks * warps_per_block >= documents or blocks == gpu_kernel.MAX_BLOCKS


def test_a_required_gpu_that_is_absent_is_an_error_that_says_what_is_missing():
    if gpu_device.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="device is gpu, but CuPy"):
        gpu_device.require()
