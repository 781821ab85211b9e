"""How well a tokenizer suits each source: bytes of text per token, beside a reference on the same documents."""

from collections import defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .shards import Run, read_batches
from .text_encoder import TextEncoder

SAMPLED_BYTES = 2_000_000
"""Text per source, taken from the start of every run in turn."""


def compare_with_reference(runs: list[Run], encoder: TextEncoder, reference: TextEncoder | None) -> dict[str, Any]:
    """Return {source: documents, bytes, tokens, bytes_per_token and, with a reference, its bytes_per_token}."""
    report = {}
    for source, texts in sorted(_samples(runs).items()):
        array = pa.array(texts, pa.large_string())
        size = int(pc.sum(pc.binary_length(array)).as_py())
        row = {"documents": len(texts), "bytes": size, **_rate("", encoder, array, size)}
        if reference is not None:
            row.update(_rate("reference_", reference, array, size))
        report[source] = row
    return report


def _rate(prefix: str, encoder: TextEncoder, texts: pa.Array, size: int) -> dict[str, Any]:
    tokens = len(encoder.encode(texts)[0])
    return {f"{prefix}tokens": tokens, f"{prefix}bytes_per_token": round(size / max(1, tokens), 4)}


def _samples(runs: list[Run]) -> dict[str, list[str]]:
    """Return the first documents of every source over all runs, about SAMPLED_BYTES of each."""
    samples: dict[str, list[str]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for run in runs:
        of_run: dict[str, int] = defaultdict(int)
        share = SAMPLED_BYTES / len(runs)
        for batch in read_batches(run):
            for source, text in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True):
                if sizes[source] < SAMPLED_BYTES and of_run[source] < share:
                    samples[source].append(text)
                    of_run[source] += len(text)
                    sizes[source] += len(text)
            break  # later batches of a run cost a pass over all text
    return samples
