"""The packed cache on disk and in the loader: bytes per token, decoding, random reads, tokens per second, memory.

Text: Python sources, or the JSON lines files that PACKING_TEXT names (web text for the claim in the README), under a
vocabulary of 32,768 trained on it. Files lie in the page cache. One core: the process is pinned to one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from packing_speed import CONTEXT, batch_of, medians, pack_ours, real_texts, write_shard
from pipeline_lib.packing.chunk_format import ChunkFile
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.packing.text_encoder import TextEncoder
from pipeline_lib.packing.trained_tokenizer import train_tokenizer, write_tokenizer
from pipeline_lib.stage import Ledger
from pipeline_lib.stage.manifest import Manifest
from pipeline_lib.stage.stage import describe_files

VOCAB_SIZE = 32_768
TEXT_BYTES = 25_000_000
MEMORY_BYTES = (20_000_000, 60_000_000, 180_000_000)
SMALL_CHUNK = 300_000
"""Tokens per chunk for the loader: many more chunks than it keeps, so that each is decoded once per epoch."""
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "03_tokenize_and_pack.py"
READS = 2000
LOADED = 20_000_000


def row(claim: str, ours: str, peer: str, ratio: float | str, quality: str) -> None:
    """Print one result."""
    shown = ratio if isinstance(ratio, str) else f"{ratio:.2f}"
    print(json.dumps({"claim": claim, "ours": ours, "peer": peer, "ratio": shown, "quality": quality}), flush=True)


def benchmark_size(cache: PackedCache) -> None:
    import lz4.frame

    chunks = [ChunkFile(cache.path / entry["file"]) for entry in cache.index["chunks"]]
    tokens = np.concatenate([chunk.tokens() for chunk in chunks])
    plain = len(lz4.frame.compress(tokens.tobytes())) / len(tokens)
    coded = sum(int(chunk._lanes[-1]) for chunk in chunks) / len(tokens)
    stored = sum(entry["bytes"] for entry in cache.index["chunks"]) / len(tokens)
    counts = np.bincount(tokens)
    share = counts[counts > 0] / len(tokens)
    entropy = -(share * np.log2(share)).sum() / 8
    quality = (
        f"everything in the files counted; byte code without LZ4 {coded:.3f}, LZ4 alone {plain:.3f}, arrow int64 8;"
        f" order-0 entropy {entropy:.3f}; {cache.index['text_bytes'] / len(tokens):.2f} bytes of text per token"
    )
    row(f"bytes per token, {VOCAB_SIZE:,} ids, {len(tokens):,} tokens, against raw uint16", f"{stored:.3f}", "2.000",
        2 / stored, quality)  # fmt: skip


def benchmark_decoding(cache: PackedCache) -> None:
    chunk = ChunkFile(cache.path / cache.index["chunks"][0]["file"])
    raw = cache.path / "raw.bin"
    tokens = chunk.tokens()
    tokens.tofile(raw)
    into = np.empty_like(tokens)
    seconds, _ = medians({"ours": lambda: chunk.tokens(into), "raw": lambda: np.fromfile(raw, np.uint16)})
    size = tokens.nbytes / 1e9
    row("decoding a whole chunk on one core, checksums verified, against reading raw uint16",
        f"{size / seconds['ours']:.2f} GB/s", f"{size / seconds['raw']:.2f} GB/s", seconds["raw"] / seconds["ours"],
        "GB/s of uint16")  # fmt: skip


def benchmark_random_reads(cache: PackedCache) -> None:
    numbers = np.random.default_rng(0).integers(0, cache.sequences(CONTEXT), READS).tolist()
    for number in numbers[:200]:
        cache.sequence(number, CONTEXT)
    times = []
    for number in numbers:
        started = time.perf_counter()
        cache.sequence(number, CONTEXT)
        times.append(time.perf_counter() - started)
    median, tail = np.percentile(times, [50, 99]) * 1e6
    plan = cache.index["plans"][0]["splits"]["train"]
    quality = f"99 % within {tail:.0f} us; {plan['pieces'] / plan['sequences']:.1f} pieces each, all four arrays"
    row(f"one random sequence of {CONTEXT} tokens from the page cache, checksums verified", f"{median:.0f} us", "", "",
        quality)  # fmt: skip


def benchmark_loader(cache: PackedCache) -> None:
    rates = []
    for _ in range(5):
        started, tokens = time.perf_counter(), 0
        for batch in cache.batches(CONTEXT, 16, epochs=None):
            tokens += batch["input_ids"].numel()
            if tokens >= LOADED:
                break
        rates.append(tokens / (time.perf_counter() - started))
    row("loader, one core, tensors of four arrays", f"{np.median(rates) / 1e6:.1f} M tokens/s", "", "",
        f"{len(cache.index['chunks'])} chunks, {cache.window_chunks} kept: each is decoded once per epoch")  # fmt: skip


def benchmark_memory(folder: Path, tokenizer: Path) -> None:
    """Peak memory of stage 03 as a process, for corpora of growing size."""
    os.environ.pop("PACKING_TEXT", None)  # web texts that every machine has are too few
    sizes, peaks = [], []
    for wanted in MEMORY_BYTES:
        run = folder / f"memory-{wanted}"
        sizes.append(finish_cleaning(run / "02_clean", real_texts(wanted)) / 1e6)
        config = run / "memory.yaml"
        config.write_text(f"pack: {{tokenizer: {tokenizer}, contexts: [{CONTEXT}]}}")
        command = [sys.executable, str(SCRIPT), "--config", str(config), "--run-dir", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        manifest = Manifest.read(run / "03_packed" / "manifest.json")
        peaks.append(manifest.run["peak_memory_bytes"] / 1e6)
    row(f"peak memory of stage 03 on {', '.join(f'{size:.0f}' for size in sizes)} MB of text",
        ", ".join(f"{peak:.0f} MB" for peak in peaks), "", "", "the whole process")  # fmt: skip


def finish_cleaning(folder: Path, texts: list[str]) -> int:
    """Leave texts as stage 02 would; return their size in bytes."""
    folder.mkdir(parents=True)
    shard = write_shard(folder / "part-00000.parquet", texts)
    size = sum(len(text.encode()) for text in texts)
    ledger = Ledger()
    ledger.enter("text", "python", documents=len(texts), bytes=size)
    ledger.keep("text", "python", documents=len(texts), bytes=size)
    files = describe_files(shard, shard.name)
    fingerprint = {"inputs": {}, "settings": {}, "seed": 42, "data": {}, "code": {}}
    Manifest("02_clean", fingerprint, files, ledger.to_json(), {}, [], 0).write(folder / "manifest.json")
    return size


def main() -> None:
    """Print one JSON row per claim."""
    texts = real_texts(TEXT_BYTES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_tokenizer(folder / "tokenizer", train_tokenizer([batch_of(texts)], VOCAB_SIZE, 2))
        (folder / "cache").mkdir()
        shard = write_shard(folder / "part-00000.parquet", texts)
        cache = pack_ours(folder / "cache", shard, TextEncoder(folder / "tokenizer"))
        (folder / "small").mkdir()
        small = pack_ours(folder / "small", shard, TextEncoder(folder / "tokenizer"), SMALL_CHUNK)
        benchmark_size(cache)
        benchmark_memory(folder, folder / "tokenizer")
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        benchmark_decoding(cache)
        benchmark_random_reads(cache)
        benchmark_loader(small)


if __name__ == "__main__":
    main()
