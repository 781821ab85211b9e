"""The packed cache on disk and in the loader: bytes per token, decoding, random reads, tokens per second, memory.

Text: Python sources, or the JSON lines files that PACKING_TEXT names (web text for the claim in the README), under a
vocabulary of 32,768 trained on it. Files lie in the page cache. One core: the process is pinned to one.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

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
SHARD_BYTES = 40_000_000
MEMORY_BYTES = {
    SHARD_BYTES: (160_000_000, 320_000_000, 640_000_000, 1_200_000_000),
    1 << 40: (160_000_000, 640_000_000),
}
"""Sizes of the corpora for each size of a shard: several shards, and all text in one."""
MEMORY_TEXT_BYTES = 170_000_000
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
    """Peak memory of stage 03, all its processes together, for corpora of growing size."""
    os.environ.pop("PACKING_TEXT", None)  # web texts that every machine has are too few
    texts = real_texts(MEMORY_TEXT_BYTES)
    for shard_bytes, corpora in MEMORY_BYTES.items():
        sizes, peaks, shards = [], [], []
        for wanted in corpora:
            run = folder / f"memory-{shard_bytes}-{wanted}"
            cleaned = finish_cleaning(run / "02_clean", texts, wanted, shard_bytes)
            sizes.append(cleaned["bytes"] / 1e6)
            shards.append(cleaned["shards"])
            config = run / "memory.yaml"
            config.write_text(f"pack: {{tokenizer: {tokenizer}, contexts: [{CONTEXT}]}}")
            command = [sys.executable, str(SCRIPT), "--config", str(config), "--run-dir", str(run)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            manifest = Manifest.read(run / "03_packed" / "manifest.json")
            peaks.append(manifest.run["peak_memory_bytes"] / 1e6)
            shutil.rmtree(run)
        row(f"peak memory of stage 03 on {', '.join(f'{size:.0f}' for size in sizes)} MB of text",
            ", ".join(f"{peak:.0f} MB" for peak in peaks), "", f"{peaks[-1] / peaks[0]:.2f}",
            f"{', '.join(map(str, shards))} shards; all processes of the stage; after the first"
            f" {MEMORY_TEXT_BYTES / 1e6:.0f} MB the words are new ones")  # fmt: skip


def finish_cleaning(folder: Path, texts: list[str], wanted: int, shard_bytes: int) -> dict[str, int]:
    """Leave `wanted` bytes of text as stage 02 would; return documents, bytes and shards."""
    folder.mkdir(parents=True)
    names = pa.schema({"id": pa.string(), "source": pa.string(), "text": pa.string()})
    stream, documents, size, paths = endless(texts), 0, 0, []
    while size < wanted:
        paths.append(folder / f"part-{len(paths):05d}.parquet")
        full = min(wanted, size + shard_bytes)
        with pq.ParquetWriter(paths[-1], names, compression="zstd") as writer:
            while size < full:
                group = list(islice(stream, 500))
                ids = [f"python-{xxhash.xxh3_128_hexdigest(text.encode())}" for text in group]
                writer.write_table(pa.table([ids, ["python"] * len(group), group], schema=names))
                documents += len(group)
                size += sum(len(text.encode()) for text in group)
    ledger = Ledger()
    ledger.enter("text", "python", documents=documents, bytes=size)
    ledger.keep("text", "python", documents=documents, bytes=size)
    files = {name: entry for path in paths for name, entry in describe_files(path, path.name).items()}
    fingerprint = {"inputs": {}, "settings": {}, "seed": 42, "data": {}, "code": {}}
    Manifest("02_clean", fingerprint, files, ledger.to_json(), {}, [], 0).write(folder / "manifest.json")
    return {"documents": documents, "bytes": size, "shards": len(paths)}


def endless(texts: list[str]) -> Iterator[str]:
    """Yield the texts again and again, each time with their letters turned by one more place of the alphabet.

    A larger corpus has words that a smaller one had not, and the encoder remembers words.
    """
    for turn in count():
        turned = [letters[turn % 26 :] + letters[: turn % 26] for letters in (ascii_lowercase, ascii_uppercase)]
        table = str.maketrans(ascii_lowercase + ascii_uppercase, "".join(turned))
        yield from (text.translate(table) for text in texts)


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
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        benchmark_decoding(cache)
        benchmark_random_reads(cache)
        benchmark_loader(small)
        os.sched_setaffinity(0, cores)
        benchmark_memory(folder, folder / "tokenizer")  # last: a machine is slower after minutes of work


if __name__ == "__main__":
    main()
