"""The long-standing entry points for dedup on a GPU, kept with their names and signatures.

A GPU that is asked for and absent is an error here, never a quiet change to the CPU; `use_gpu=None` (choose) is not a
request. Whatever computes the signatures, the kept documents are the same.
"""

import numpy as np

from . import gpu_device
from .cpu_dedup import GIB, fuzzy_dedup
from .parameters import WITHOUT_GUARD, DedupParameters

_EMPTY = np.iinfo(np.uint64).max


def is_gpu_dedup_available() -> bool:
    """Tell whether signatures can be computed on a GPU here (CuPy installed and a device present)."""
    return gpu_device.is_available()


def get_memory_info() -> dict:
    """Return gpu_name (None without a GPU), gpu_total_gb, gpu_free_gb, ram_total_gb and ram_free_gb.

    Gigabytes are 2^30 bytes; the first GPU is meant.
    """
    import psutil

    memory = psutil.virtual_memory()
    info = {
        "gpu_name": None,
        "gpu_total_gb": 0.0,
        "gpu_free_gb": 0.0,
        "ram_total_gb": memory.total / GIB,
        "ram_free_gb": memory.available / GIB,
    }
    if gpu_device.is_available():
        name, free, total = gpu_device.device_memory()
        info.update(gpu_name=name, gpu_free_gb=free / GIB, gpu_total_gb=total / GIB)
    return info


def gpu_fuzzy_dedup(
    input_path: str,
    output_path: str,
    text_column: str = "text",
    id_column: str = "id",
    similarity_threshold: float = 0.8,
    char_ngrams: int = 5,
    num_buckets: int = 20,
    hashes_per_bucket: int = 13,
    cache_path: str | None = None,
    use_gpu: bool | None = None,
    n_workers: int = 1,
    show_progress: bool = True,
) -> str:
    """Remove exact duplicates and documents whose set of character n-grams resembles that of a kept one.

    Returns `output_path`, where it writes deduplicated.parquet and removed.parquet. `similarity_threshold` is compared
    with the Jaccard similarity of the real sets. `num_buckets` bands of `hashes_per_bucket` permutations find the
    candidates; the line that `show_progress` prints says how many pairs at the threshold they can find. `cache_path`
    takes the temporary files. However much of a source that removes, nobody is asked. Word 5-grams (`fuzzy_dedup`) are
    the better choice for natural language: records that share a template agree on most of their character n-grams.
    Raises UserError for bad input or a GPU that is required and absent.
    """
    parameters = DedupParameters(
        shingle="character",
        ngram=char_ngrams,
        bands=num_buckets,
        rows=hashes_per_bucket,
        jaccard=similarity_threshold,
        containment=similarity_threshold,
        device={None: "auto", True: "gpu", False: "cpu"}[use_gpu],
        **WITHOUT_GUARD,
    )
    say = print if show_progress else (lambda line: None)
    seen = parameters.candidate_probability(similarity_threshold)
    say(f"dedup: {num_buckets} x {hashes_per_bucket} bands see {seen:.0%} of pairs at {similarity_threshold:g}")
    summary = fuzzy_dedup(
        input_path,
        output_path,
        parameters,
        text_column=text_column,
        id_column=id_column,
        workers=n_workers,
        scratch=cache_path,
        say=say,
    )
    return str(summary.output)


def compute_minhash_signatures_gpu(
    all_shingles: list[np.ndarray], num_perm: int, device: str = "cuda", batch_size: int = 10000
) -> np.ndarray:
    """Return uint64[documents, num_perm] MinHash signatures of lists of 64-bit shingle hashes (None counts as empty).

    `device` is "cuda" or "cpu", with equal results; `batch_size` documents are sent at a time. The entries are 32-bit
    minima; a document without shingles has 2^64 - 1 everywhere, which no minimum reaches. Raises UserError for "cuda"
    without a GPU.
    """
    from pipeline_lib.stage import UserError

    from .minhash import permutations
    from .minhash import signatures as cpu_signatures

    if device not in ("cuda", "cpu"):
        raise UserError(f"dedup: device is {device!r}; choose cuda or cpu")
    if device == "cuda":
        gpu_device.require()
    signer = gpu_device.signatures if device == "cuda" else cpu_signatures
    a, b = permutations(num_perm, DedupParameters.seed)
    out = np.empty((len(all_shingles), num_perm), np.uint64)
    for first in range(0, len(all_shingles), batch_size):
        arrays = [np.asarray(s if s is not None else (), np.uint64) for s in all_shingles[first : first + batch_size]]
        starts = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        part = signer(np.concatenate(arrays), starts, a, b).astype(np.uint64)
        part[np.diff(starts) == 0] = _EMPTY
        out[first : first + len(arrays)] = part
    return out
