"""What stage 03 would cost, from training and encoding the first documents: the probe behind --plan."""

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.config.pack import PackSettings

from .bpe_training import train_merges
from .pretoken_counts import DISTINCT_BYTES, count_pieces
from .shards import RUN_BYTES, Run, require_text, sample_texts
from .text_encoder import TextEncoder, text_buffers
from .tokenizer_folder import SPECIAL_TOKENS, resolve_tokenizer
from .trained_tokenizer import write_tokenizer

_START_SECONDS = 3.0
_START_BYTES = 350_000_000
_BYTES_PER_CHUNK_TOKEN = 24
_TRAINING_BYTES_PER_DISTINCT_BYTE = 40
_TIMES_READ = 4  # a text whose distinct pieces do not fit is read in smaller and smaller shares


def probe_packing(runs: list[Run], settings: PackSettings, probed_bytes: int) -> tuple[dict[str, Any], float]:
    """Return what packing `runs` would take, scaled up from a few documents, and their bytes of text per token.

    The first holds seconds, memory_bytes, disk_bytes and basis.
    """
    require_text(runs)
    texts = pa.array(sample_texts(runs, probed_bytes), pa.large_string())
    data, _ = text_buffers(texts)
    total = sum(run.bytes for run in runs)
    with tempfile.TemporaryDirectory() as scratch:
        training, training_memory = _train(Path(scratch), texts, min(total, settings.training_bytes), settings)
        encoder = TextEncoder(Path(scratch) if settings.tokenizer is None else resolve_tokenizer(settings.tokenizer))
        encoder.encode(texts)  # the first call starts threads
        started = time.perf_counter()
        tokens, _ = encoder.encode(texts)
        encoding = (time.perf_counter() - started) / max(1, len(data))
    tokens_per_byte = len(tokens) / max(1, len(data))
    stored = total * tokens_per_byte * encoder.dtype.itemsize
    largest_run = max(max(run.bytes for run in runs), RUN_BYTES if len(runs) > 1 else 0)
    packing_memory = 2 * largest_run + _BYTES_PER_CHUNK_TOKEN * settings.chunk_tokens
    estimate = {
        "seconds": _START_SECONDS + training + 4 * encoding * total,
        "memory_bytes": int(_START_BYTES + max(training_memory, packing_memory)),
        "disk_bytes": int(2 * stored),
        "basis": f"trained on and encoded {len(data) / 1e6:.1f} MB of {total / 1e6:.1f} MB of text",
    }
    return estimate, len(data) / (len(tokens) + len(texts))  # every document has a separator


def _train(folder: Path, texts: pa.Array, text_bytes: int, settings: PackSettings) -> tuple[float, int]:
    """Train a small tokenizer on the probe, unless one is given; return the seconds and bytes of memory of all text.

    The seconds are those without compilation.
    """
    if settings.tokenizer is not None:
        return 0.0, 0
    probe = text_buffers(texts)
    for _ in range(2):  # the first round compiles
        started = time.perf_counter()
        counted = count_pieces([probe])
        counting = time.perf_counter() - started
        merges = train_merges(counted, settings.vocab_size - len(SPECIAL_TOKENS), 1)
        learning = time.perf_counter() - started - counting
    write_tokenizer(folder, merges)
    distinct = expected_distinct_bytes(texts, text_bytes)
    kept = min(distinct, DISTINCT_BYTES)
    read = text_bytes / max(1, len(probe[0])) * (1 if distinct <= DISTINCT_BYTES else _TIMES_READ)
    seconds = counting * read + learning * max(1.0, kept / max(1, len(counted.arena)))
    return seconds, int(_TRAINING_BYTES_PER_DISTINCT_BYTE * kept)


def expected_distinct_bytes(texts: pa.Array, text_bytes: int) -> float:
    """Return how many bytes the distinct pieces of `text_bytes` of text like this one take together.

    They grow with a power of the text (Heaps' law), here the one from every second document to all of them; in text
    without blanks between words it is nearly 1.
    """
    half, whole = text_buffers(texts.take(pa.array(range(0, len(texts), 2)))), text_buffers(texts)
    few, many = (len(count_pieces([part]).arena) for part in (half, whole))
    if not 0 < len(half[0]) < len(whole[0]) or not few:
        return float(text_bytes)
    power = min(1.0, math.log(many / few) / math.log(len(whole[0]) / len(half[0])))
    return many * (text_bytes / len(whole[0])) ** power
