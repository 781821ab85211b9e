"""Re-exports the public names of the dedup package that older scripts import from here; there is nothing else."""

from dedup import (
    build_lsh_index,
    compute_minhash_signatures_gpu,
    cpu_dedup_streaming,
    fast_shingle_hash,
    find_duplicates_lsh,
    get_memory_info,
    gpu_fuzzy_dedup,
    is_gpu_dedup_available,
)

__all__ = [
    "build_lsh_index",
    "compute_minhash_signatures_gpu",
    "cpu_dedup_streaming",
    "fast_shingle_hash",
    "find_duplicates_lsh",
    "get_memory_info",
    "gpu_fuzzy_dedup",
    "is_gpu_dedup_available",
]
