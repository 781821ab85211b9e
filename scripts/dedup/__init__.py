"""Exact and fuzzy dedup of text corpora, with the same answer on every machine. See docs/dedup.md.

Names are loaded on first use: `import dedup` costs nothing, numba and pyarrow come with the first call that needs them.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DedupParameters": "parameters",
    "find_duplicates": "removals",
    "fuzzy_dedup": "cpu_dedup",
    "cpu_dedup_streaming": "cpu_dedup",
    "gpu_fuzzy_dedup": "gpu_dedup",
    "is_gpu_dedup_available": "gpu_dedup",
    "get_memory_info": "gpu_dedup",
    "compute_minhash_signatures_gpu": "gpu_dedup",
    "fast_shingle_hash": "signature_lsh",
    "build_lsh_index": "signature_lsh",
    "find_duplicates_lsh": "signature_lsh",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dedup' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
