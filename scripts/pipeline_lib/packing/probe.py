"""What stage 03 would cost, from training and encoding the first documents: the probe behind --plan."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.config.pack import PackSettings

from .bpe_training import train_merges
from .pretoken_counts import PretokenCounter
from .shards import RUN_BYTES, Run, require_text, sample_texts
from .text_encoder import TextEncoder, text_buffers
from .tokenizer_folder import SPECIAL_TOKENS, resolve_tokenizer
from .trained_tokenizer import write_tokenizer

_START_SECONDS = 3.0
_START_BYTES = 350_000_000
_BYTES_PER_CHUNK_TOKEN = 24


def probe_packing(runs: list[Run], settings: PackSettings, probed_bytes: int) -> tuple[dict[str, Any], float]:
    """Return what packing `runs` would take, scaled up from a few documents, and their bytes of text per token.

    The first holds seconds, memory_bytes, disk_bytes and basis.
    """
    require_text(runs)
    texts = pa.array(sample_texts(runs, probed_bytes), pa.large_string())
    data, offsets = text_buffers(texts)
    total = sum(run.bytes for run in runs)
    with tempfile.TemporaryDirectory() as scratch:
        trained_share = min(total, settings.training_bytes) / max(1, len(data))
        training = _train(Path(scratch), data, offsets, settings) * trained_share
        encoder = TextEncoder(Path(scratch) if settings.tokenizer is None else resolve_tokenizer(settings.tokenizer))
        encoder.encode(texts)  # the first call starts threads
        started = time.perf_counter()
        tokens, _ = encoder.encode(texts)
        encoding = (time.perf_counter() - started) / max(1, len(data))
    tokens_per_byte = len(tokens) / max(1, len(data))
    stored = total * tokens_per_byte * encoder.dtype.itemsize
    largest_run = max(max(run.bytes for run in runs), RUN_BYTES if len(runs) > 1 else 0)
    estimate = {
        "seconds": _START_SECONDS + training + 4 * encoding * total,
        "memory_bytes": int(_START_BYTES + 2 * largest_run + _BYTES_PER_CHUNK_TOKEN * settings.chunk_tokens),
        "disk_bytes": int(2 * stored),
        "basis": f"trained on and encoded {len(data) / 1e6:.1f} MB of {total / 1e6:.1f} MB of text",
    }
    return estimate, len(data) / (len(tokens) + len(texts))  # every document has a separator


def _train(folder: Path, data: np.ndarray, offsets: np.ndarray, settings: PackSettings) -> float:
    """Train a small tokenizer on the probe, unless one is given; return the seconds without compilation."""
    if settings.tokenizer is not None:
        return 0.0
    for _ in range(2):  # the first round compiles
        started = time.perf_counter()
        counter = PretokenCounter()
        counter.add(data, offsets)
        merges = train_merges(counter.counts(), settings.vocab_size - len(SPECIAL_TOKENS), 1)
    seconds = time.perf_counter() - started
    write_tokenizer(folder, merges)
    return seconds
